"""The safetensors format: a length, a JSON header, and the bytes of the tensors.

    8 bytes    N, little-endian
    N bytes    {name: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
    the rest   row-major little-endian data; offsets count from its first byte

Nothing in a file is ever executed, unlike in a pickle.

Source: github.com/huggingface/safetensors, "Format".
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
# A longer header is taken for damage, as in the format's own library.
MAX_HEADER = 100_000_000


class Tensor(NamedTuple):
    """Where a tensor lies in a file."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # from the beginning of the file

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def open(self) -> np.ndarray:
        """The tensor as a view of the file: read where and when it is looked at.

        The file stays mapped, and what was read of it in memory, until the view and all
        views of it are gone.
        """
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file; only its header is read.

    Raises:
      ValueError: the file is no such file, is damaged or cut short, or has a tensor of
        a dtype that no parameter can have.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise _damaged(
                file, f"its {size} bytes begin with a header of {length} bytes"
            )
        header = opened.read(length)
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise _damaged(file, f"its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise _damaged(file, "its header is no JSON object")
    entries.pop("__metadata__", None)
    start = 8 + length
    tensors = {
        name: _tensor(file, name, entry, start) for name, entry in entries.items()
    }
    end = max((tensor.end for tensor in tensors.values()), default=start)
    if end != size:
        raise _damaged(file, f"it has {size} bytes, its header describes {end}")
    return tensors


def _tensor(file: Path, name: str, entry: Any, start: int) -> Tensor:
    match entry:
        case {
            "dtype": str(code),
            "shape": [*shape],
            "data_offsets": [int(begin), int(end)],
        } if begin >= 0 and all(isinstance(n, int) and n >= 0 for n in shape):
            pass
        case _:
            raise _damaged(file, f"its header has {entry} for tensor {name!r}")
    if code not in DTYPES:
        raise ValueError(
            f"{file}: tensor {name!r} has dtype {code}, wanted one of "
            f"{', '.join(DTYPES)}: convert it to one of these"
        )
    tensor = Tensor(file, DTYPES[code], tuple(shape), start + begin)
    if tensor.end != start + end:
        raise _damaged(
            file, f"tensor {name!r} of shape {shape} lies at bytes {begin} to {end}"
        )
    return tensor


def _damaged(file: Path, what: str) -> ValueError:
    return ValueError(
        f"{file} is no intact safetensors file: {what}. It may be cut short: download "
        "or copy it again"
    )


class Planned(NamedTuple):
    """A tensor that is to be written."""

    dtype: np.dtype
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]  # called when it is written, and then forgotten

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(file: Path, tensors: Mapping[str, Planned]) -> None:
    """Write a file, tensor by tensor; each is in memory only while it is written."""
    # Wide dtypes first: then every tensor lies at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in order:
        tensor = tensors[name]
        end = begin + tensor.nbytes
        header[name] = {
            "dtype": codes[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            value = np.asarray(tensors[name].value(), tensors[name].dtype)
            assert value.shape == tensors[name].shape
            value.tofile(opened)
        opened.flush()
        os.fsync(opened.fileno())
