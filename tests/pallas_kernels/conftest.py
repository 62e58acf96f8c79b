"""Kernels in interpret mode: memory starts as NaN, races are looked for."""

import contextlib
import functools
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as mg
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import ring_gpu, scan_tiles_tpu, target


@pytest.fixture
def as_tpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the op believe that it is on a TPU, and interprets its kernels."""
    with tpu_interpreter(monkeypatch, detect_races=True):
        yield


@pytest.fixture
def as_tpu_without_races(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As `as_tpu`; not to look for races halves the time of the large cases."""
    with tpu_interpreter(monkeypatch, detect_races=False):
        yield


@contextlib.contextmanager
def tpu_interpreter(
    monkeypatch: pytest.MonkeyPatch, *, detect_races: bool
) -> Iterator[None]:
    monkeypatch.setattr(target, "platform", lambda: "tpu")
    parameters = pltpu.InterpretParams(
        uninitialized_memory="nan", detect_races=detect_races
    )
    with pltpu.force_tpu_interpret_mode(parameters):
        yield


@pytest.fixture
def tpu_tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets some of the fields of the tiles that are chosen."""
    return functools.partial(set_tiles, monkeypatch, scan_tiles_tpu)


@pytest.fixture
def gpu_tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets some of the fields of the tiles that are chosen."""
    return functools.partial(set_tiles, monkeypatch, ring_gpu)


def set_tiles(
    monkeypatch: pytest.MonkeyPatch, module: types.ModuleType, **fields: Any
) -> None:
    choose = module.choose_tiles
    monkeypatch.setattr(
        module, "choose_tiles", lambda *a: choose(*a)._replace(**fields)
    )


@pytest.fixture
def as_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """Lets the op believe that it is on a GPU, and interprets its kernels."""
    with gpu_interpreter(monkeypatch, detect_races=True):
        yield
    assert "RACE DETECTED" not in capsys.readouterr().out


@pytest.fixture
def as_gpu_without_races(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As `as_gpu`, in two thirds of the time."""
    with gpu_interpreter(monkeypatch, detect_races=False):
        yield


@contextlib.contextmanager
def gpu_interpreter(
    monkeypatch: pytest.MonkeyPatch, *, detect_races: bool
) -> Iterator[None]:
    monkeypatch.setattr(target, "platform", lambda: "gpu")
    monkeypatch.setattr(target, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    interpreter = mg
    if not hasattr(mg, "force_gpu_interpret_mode"):
        interpreter = importlib.import_module(
            "jax._src.pallas.mosaic_gpu.interpret.params"
        )
        clip_like_the_copy_engine(monkeypatch)
    parameters = interpreter.InterpretGPUParams(detect_races=detect_races)
    with interpreter.force_gpu_interpret_mode(parameters):
        yield


def clip_like_the_copy_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives zeros outside an array, and writes nothing there, as later JAX does.

    The interpreter of JAX 0.10 raises instead, although the compiled copies may reach
    over the edges of an array.
    """
    memory = importlib.import_module("jax._src.pallas.mosaic.interpret.shared_memory")

    def clipped(buffer, ranges):
        """What of `ranges` is inside, and where that lies in an array of their size."""
        ranges = buffer._normalize_range(ranges)
        inside, within = [], []
        for size, part in zip(buffer.shape, ranges, strict=True):
            if not isinstance(part, slice):
                inside.append(part)
                continue
            start, stop = max(part.start, 0), min(part.stop, size)
            inside.append(slice(start, max(start, stop)))
            within.append(slice(start - part.start, max(start, stop) - part.start))
        shape = [part.stop - part.start for part in ranges if isinstance(part, slice)]
        return tuple(inside), tuple(within), shape

    def read(buffer, ranges):
        inside, within, shape = clipped(buffer, ranges)
        out = np.zeros(shape, buffer.dtype)
        out[within] = buffer.content[inside]
        return out

    def write(buffer, ranges, value):
        inside, within, _ = clipped(buffer, ranges)
        buffer.content[inside] = value[within]

    monkeypatch.setattr(memory.Buffer, "__getitem__", read)
    monkeypatch.setattr(memory.Buffer, "__setitem__", write)
