"""The format, against bytes put together by hand."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ssm.pretrained import safetensors
from tests.ssm.pretrained.files import pack, unpack


def arrays():
    draw = np.random.default_rng(0)
    return {
        "matrix": draw.normal(size=(3, 5)).astype(np.float32),
        "odd": draw.normal(size=(7,)).astype(jnp.bfloat16),  # what follows is unaligned
        "half": draw.normal(size=(2, 1, 3)).astype(np.float16),
        "wide": draw.normal(size=(4,)),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def test_reads_what_the_format_says(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(pack(arrays()))
    tensors = safetensors.read(file)
    assert tensors.keys() == arrays().keys()
    for name, want in arrays().items():
        got = tensors[name].open()
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_array_equal(got, want)
        assert not got.size or not got.flags.writeable


def test_writes_what_the_format_says(tmp_path):
    file = tmp_path / "model.safetensors"
    planned = {
        name: safetensors.Planned(array.dtype, array.shape, lambda a=array: a)
        for name, array in (arrays() | {"turned": arrays()["matrix"].T}).items()
    }
    safetensors.write(file, planned)
    content = file.read_bytes()
    got, want = unpack(content), unpack(pack(arrays()))
    assert got.pop("turned")[2] == np.ascontiguousarray(arrays()["matrix"].T).tobytes()
    assert got == want
    # Every tensor lies at a multiple of its item size, so that it can be used in place.
    for tensor in safetensors.read(file).values():
        assert tensor.offset % tensor.dtype.itemsize == 0


def header(entries, data=b""):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its 0 bytes begin with a header of 0 bytes"),
        (b"\1\0\0", "its 3 bytes begin"),
        (
            b"\xff" * 64,
            r"its 64 bytes begin with a header of \d{20} bytes",
        ),
        (header(b"{nonsense"), "its header is not JSON"),
        (header(b"\xff\xfe{}"), "its header is not JSON"),
        (header([1, 2]), "its header is no JSON object"),
        (header({"x": 3}), "its header has 3 for tensor 'x'"),
        (header(entry(shape=[-1])), r"its header has .*-1.* for tensor 'x'"),
        (header(entry(shape=["a"])), "its header has"),
        (header(entry(offsets=[0])), "its header has"),
        (header(entry(offsets=[-4, 0])), "its header has"),
        (
            header(entry(offsets=[0, 8]), b"12345678"),
            r"shape \[1\] lies at bytes 0 to 8",
        ),
        (header(entry(), b"123"), r"it has \d+ bytes, its header describes \d+"),
        (header(entry(), b"12345"), r"it has \d+ bytes, its header describes \d+"),
        (
            header(entry("I64", offsets=[0, 8]), b"12345678"),
            "tensor 'x' has dtype I64, wanted one of F64, F32, F16, BF16",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        safetensors.read(file)
    assert str(file) in str(raised.value)
    if "I64" not in message:
        assert str(raised.value).endswith("download or copy it again")


def test_every_cut_is_noticed(tmp_path):
    file = tmp_path / "model.safetensors"
    content = pack({"x": np.ones(3, np.float32)})
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="no intact safetensors file"):
            safetensors.read(file)
