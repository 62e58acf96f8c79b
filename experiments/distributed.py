"""Processes, the device mesh, and how arrays lie on it.

Batches are split over the mesh axes `data` and `fsdp`, large parameters over `fsdp`
(`ssm.param_sharding`); the ops split sequences over `time` (`ssm.ops.axis_names`).
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.errors import UserError

T = TypeVar("T")

BATCH_AXES = ("data", "fsdp")


def initialize(
    mode: str = "auto",
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other processes of the run; comes before the first use of a device.

    A single process joins itself: only so does jax catch SIGTERM, and pre-emption is
    one code path. `auto` asks the environment inside a SLURM step of several tasks;
    `on` always does (TPU pods); `off` leaves SIGTERM alone.
    """
    if mode == "off":
        return
    if coordinator_address is not None:
        jax.distributed.initialize(coordinator_address, process_count, process_id)
    elif mode == "on" or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(f"localhost:{_free_port()}", 1, 0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def is_main() -> bool:
    """Whether this process writes the files and prints."""
    return jax.process_index() == 0


def preempted(calls: int) -> bool:
    """Whether a process was told to stop, and all are to do so now.

    `calls` counts the calls since the start, 1, 2, ...: all processes are told at the
    same one, the next that none has made yet. (Steps would not do: a signal that comes
    before the first call would wait for step 1, which a resumed run never reaches.)
    """
    return multihost_utils.reached_preemption_sync_point(calls)


def say(line: str) -> None:
    """Print a line, once."""
    if is_main():
        print(line, flush=True)


def barrier(name: str) -> None:
    """Wait for every process to come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def main_first(make: Callable[[], T]) -> T:
    """Call `make` in the main process, then in the others: it may write files."""
    if not is_main():
        barrier("main first")
        return make()
    try:
        return make()
    finally:
        barrier("main first")


def make_mesh(
    data: int, fsdp: int, time: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return the mesh of `devices`, by default all; `data=-1` takes what is left.

    Raises:
      UserError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1:
        data = len(devices) // (fsdp * time)
    if data * fsdp * time != len(devices):
        raise UserError(
            f"mesh.data={data} times mesh.fsdp={fsdp} times mesh.time={time} is not "
            f"the number of devices, {len(devices)}: set --config.mesh.data=-1, and "
            "the others such that their product divides it"
        )
    names = (*BATCH_AXES, "time")
    types = (AxisType.Auto,) * len(names)
    return jax.make_mesh((data, fsdp, time), names, types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Each device holds its part of the leading axis, those along `time` the same."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(
    key: str, batch_size: int, mesh: Mesh, accumulate_steps: int = 1
) -> None:
    """Refuse a batch that does not split evenly.

    Raises:
      UserError: naming the batch size and what must divide it.
    """
    devices = mesh.size // mesh.shape["time"]
    if batch_size % (devices * accumulate_steps):
        micro = f" x {accumulate_steps} micro-batches" if accumulate_steps > 1 else ""
        raise UserError(
            f"config key {key}={batch_size} is not a multiple of {devices} "
            f"devices{micro}: choose one that is"
        )


def to_global(
    batch: Mapping[str, np.ndarray], sharding: NamedSharding
) -> dict[str, jax.Array]:
    """Place a batch that every process holds whole; each device takes its rows."""

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return {name: place(array) for name, array in batch.items()}
