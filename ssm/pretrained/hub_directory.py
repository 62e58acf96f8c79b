"""A model's directory as on the Hugging Face hub.

It has `config.json` and its tensors in `model.safetensors`, or in several such files
and `model.safetensors.index.json`, which says what is where.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssm.pretrained import safetensors
from ssm.pretrained.hub_config import HubConfig

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_config(directory: Path) -> HubConfig:
    """The values of `config.json`.

    Raises:
      FileNotFoundError: there is no such directory, or no such file in it.
      ValueError: the file is no JSON object.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory {directory}: download a model into it")
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {CONFIG}; {_contents(directory)}")
    return HubConfig(_read_json(path), str(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no JSON object")
    return values


def _contents(directory: Path) -> str:
    return f"it has {sorted(path.name for path in directory.iterdir())}"


def find_tensors(directory: Path) -> dict[str, safetensors.Tensor]:
    """Where each tensor is.

    Raises:
      FileNotFoundError: there are none, or a file that the index names is missing.
      ValueError: there are only pickles, or a file is damaged.
    """
    if (directory / SINGLE).is_file():
        return safetensors.read(directory / SINGLE)
    if (directory / INDEX).is_file():
        return _find_in_shards(directory)
    pickles = [path.name for kind in PICKLES for path in directory.glob(kind)]
    if pickles:
        raise ValueError(
            f"{directory} has its weights in pickles only ({', '.join(pickles)}): they "
            "may run any code when they are read. Convert them to safetensors, for "
            "instance by save_pretrained of transformers"
        )
    raise FileNotFoundError(
        f"{directory} has neither {SINGLE} nor {INDEX}; {_contents(directory)}"
    )


def _find_in_shards(directory: Path) -> dict[str, safetensors.Tensor]:
    index = directory / INDEX
    file_of = _read_json(index).get("weight_map")
    match file_of:
        case dict() if all(isinstance(file, str) for file in file_of.values()):
            pass
        case _:
            raise ValueError(f"{index} has no 'weight_map' of files: download it again")
    tensors: dict[str, safetensors.Tensor] = {}
    for file in sorted(set(file_of.values())):
        path = directory / file
        if not path.is_file():
            raise FileNotFoundError(
                f"{index} names {file}, which is not there: download it too; "
                f"{_contents(directory)}"
            )
        tensors |= safetensors.read(path)
    for name, file in file_of.items():
        if name not in tensors or tensors[name].file != directory / file:
            raise ValueError(
                f"{index} says that {name!r} is in {file}, which has no such tensor: "
                "download both again"
            )
    return tensors


class Views(Mapping[str, np.ndarray]):
    """Tensors that are mapped into memory while they are looked at, and no longer."""

    def __init__(self, tensors: dict[str, safetensors.Tensor]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].open()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def check_free(directory: Path) -> None:
    """Raise FileExistsError if there is anything in a directory."""
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty: save to a new directory")


def write(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, safetensors.Planned],
    max_shard_bytes: int,
) -> None:
    """Write a directory, which appears when it is complete."""
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        _write_json(unfinished / CONFIG, config)
        _write_tensors(unfinished, tensors, max_shard_bytes)
        unfinished.replace(directory)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _write_tensors(
    directory: Path, tensors: Mapping[str, safetensors.Planned], max_shard_bytes: int
) -> None:
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        safetensors.write(directory / SINGLE, tensors)
        return
    file_of: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors.write(directory / file, shard)
        file_of |= dict.fromkeys(shard, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": file_of}
    _write_json(directory / INDEX, index)


def _split(
    tensors: Mapping[str, safetensors.Planned], max_bytes: int
) -> list[dict[str, safetensors.Planned]]:
    """Tensors in their order, in as many parts as it takes."""
    shards: list[dict[str, safetensors.Planned]] = [{}]
    room = max_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards
