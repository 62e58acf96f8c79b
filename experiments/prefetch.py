"""Batches made ahead of time, so that step n+1's is ready when step n is dispatched."""

from collections.abc import Callable, Iterator, Mapping

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments import distributed


def batches(
    make: Callable[[int], Mapping[str, np.ndarray]],
    start: int,
    stop: int,
    sharding: NamedSharding,
) -> Iterator[dict[str, jax.Array]]:
    """Yield `make(i)` for i in [start, stop), laid out on the devices.

    One thread works two batches ahead: more only take time from the device's own
    threads on a small machine.
    """

    def place(index: int) -> dict[str, jax.Array]:
        return distributed.to_global(make(int(index)), sharding)

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(start, stop).map(place).to_iter_dataset(options))
