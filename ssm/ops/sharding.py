"""Ops under a mesh: which part of the arrays each device computes.

Device kernels are not partitioned by XLA, and a recurrence that XLA partitions along
time gathers its whole input. So an op that recurs asks the ambient mesh (`with
jax.set_mesh(mesh):`) and wraps itself in a `shard_map`: the batch over the axes `data`
and `fsdp`, the width or the heads over `tensor`, time over `time`. Where no such axis
is, nothing is wrapped. Axes that are manual already, because the caller is inside a
`shard_map`, are the caller's.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from pallas_kernels.varying import vary_over, varying_axes
from ssm.ops.sequence_parallel import along_time

T = TypeVar("T")


class _AxisNames(NamedTuple):
    batch: tuple[str, ...] = ("data", "fsdp")
    width: str = "tensor"
    time: str = "time"


_names = _AxisNames()


def axis_names(
    *,
    batch: tuple[str, ...] = _AxisNames().batch,
    width: str = _AxisNames().width,
    time: str = _AxisNames().time,
) -> None:
    """Names the mesh axes that the ops shard over, in place of the usual names.

    Call it once, before anything is traced: compiled functions do not see a change.

    Args:
      batch: the axes over which the batch is sharded; those that do not divide it are
        left out.
      width: the axis over which channels, or heads, are sharded.
      time: the axis over which time is sharded.
    """
    global _names
    _names = _AxisNames(tuple(batch), width, time)


def vary_alike(arrays: T, *also: str) -> T:
    """Marks all arrays as varying over every mesh axis that one of them varies over.

    Inside a `shard_map` that checks this, a loop or a kernel needs it: the state that a
    loop carries must have one type from the first step on, and zeros vary over nothing.
    `also` names further axes.
    """
    axes = map(varying_axes, jax.tree.leaves(arrays))
    everywhere: frozenset[str] = frozenset(also).union(*axes)
    return jax.tree.map(lambda array: vary_over(array, everywhere), arrays)


def spread(
    op: str,
    local: Callable[[tuple[Any, ...], jax.Array], tuple[jax.Array, jax.Array]],
    inputs: tuple[jax.Array | None, ...],
    state: jax.Array,
    *,
    axes: tuple[str, ...],
    state_axes: str,
    out_axes: str,
    decay_product: Callable[[tuple[Any, ...]], jax.Array],
    reverse: bool = False,
    time_axis: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs a recurrence on the devices of the ambient mesh, each with its part.

    Args:
      op: the name of the op, for errors.
      local: `local(inputs, state) -> (out, last)`, the recurrence on one device.
      inputs: its arrays; None for one that is not given. The last is `reset` (B, T).
      state: the state before the first step.
      axes: what the axes of each input are, one letter an axis: b batch, t time, d
        width, h heads; others are never sharded.
      state_axes: the same of `state` and of `last`.
      out_axes: the same of `out`.
      decay_product: `decay_product(inputs)`, what multiplies a state from before the
        first step on its way to the last, resets apart. Of the rank of the state, and
        of a shape that broadcasts against it.
      reverse: whether the recurrence runs from the last time step to the first.
      time_axis: a manual mesh axis over which the caller has sharded time.

    Raises:
      ValueError: a mesh axis does not divide the time steps or the width, or
        `time_axis` is no manual axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if time_axis is not None and time_axis not in mesh.manual_axes:
        raise ValueError(
            f"{op}: time_axis={time_axis!r} is no axis of a surrounding shard_map "
            f"(those are {list(mesh.manual_axes)}); outside of one leave it None and "
            f"call the axis of the mesh {_names.time!r}"
        )
    sizes = _sizes(axes, inputs)
    mapped = _assign(op, mesh, sizes, time_axis)

    def on_device(inputs, state):
        time = time_axis or mapped.get("t")
        if time is None:
            return local(inputs, state)
        inputs, state = vary_alike((inputs, state), time)
        return along_time(local, product, inputs, state, time, reverse)

    def product(inputs):
        decay, reset = decay_product(inputs), inputs[-1]
        if reset is None:
            return decay
        cleared = reset.any(1).reshape(-1, *(1,) * (decay.ndim - 1))
        return jnp.where(cleared, jnp.zeros_like(decay), decay)

    def spec(letters):
        return PartitionSpec(*(mapped.get(letter) for letter in letters))

    of_inputs = tuple(
        None if array is None else spec(letters)
        for letters, array in zip(axes, inputs, strict=True)
    )
    in_specs = (of_inputs, spec(state_axes))
    out_specs = spec(out_axes), spec(state_axes)
    return _on_devices(mesh, on_device, (inputs, state), in_specs, out_specs)


def whole_sequences(
    op: str,
    local: Callable[..., jax.Array],
    inputs: tuple[jax.Array, ...],
    *,
    axes: tuple[str, ...],
    out_axes: str,
) -> jax.Array:
    """Runs `local(*inputs)`, which needs all of time, on the devices of the mesh.

    The mesh axis for time takes a part of the width beside the one for the width, if
    the two divide it, so that what is sharded over time is exchanged against channels.
    If not, its devices do the same work. Otherwise as in `spread`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free, sizes = _free_axes(mesh), _sizes(axes, inputs)
    laid_out = _assign(op, mesh, sizes, None)
    mapped = {letter: name for letter, name in laid_out.items() if letter != "t"}
    over_width = tuple(n for n in (_names.width, _names.time) if free.get(n, 1) > 1)
    if over_width and sizes["d"] % math.prod(free[name] for name in over_width) == 0:
        mapped["d"] = over_width

    def spec(letters, of=mapped):
        return PartitionSpec(*(of.get(letter) for letter in letters))

    out = _on_devices(mesh, local, inputs, tuple(map(spec, axes)), spec(out_axes))
    if AxisType.Explicit in mesh.axis_types:
        return jax.reshard(out, spec(out_axes, laid_out))
    return out


def _on_devices(
    mesh: AbstractMesh,
    function: Callable[..., T],
    arguments: tuple[Any, ...],
    in_specs: Any,
    out_specs: Any,
) -> T:
    """`function(*arguments)`, in a `shard_map` where the mesh has axes for the ops."""
    # A device kernel wants every axis manual, those of one device too. Axes that the
    # ops have no name for are left to XLA.
    wrapped = {n for n, size in _free_axes(mesh).items() if size == 1 or n in _known()}
    if mesh.empty or mesh.size == 1 or not wrapped:
        return function(*arguments)
    if AxisType.Explicit in mesh.axis_types:  # where arrays come as a shard_map wants
        arguments = jax.tree.map(jax.reshard, arguments, in_specs)
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=wrapped
    )(*arguments)


def shards_time() -> bool:
    """Whether the ambient mesh has an axis over which the ops shard time."""
    return _free_axes(jax.sharding.get_abstract_mesh()).get(_names.time, 1) > 1


def constrain(x: jax.Array, axes: str) -> jax.Array:
    """Lays `x` out over the ambient mesh as the ops do, with the width on each device.

    For what flows between the ops: without it XLA may well keep whole sequences on
    every device and cut them up for each op. `axes` has a letter for each axis of `x`,
    as in `spread`. Lengths that the mesh does not divide stay whole; without a mesh, or
    inside a `shard_map` over these axes, this returns `x` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = dict(zip(axes, x.shape, strict=True))
    mapped: dict[str, Any] = {}
    if batch := _batch_axes(mesh, sizes["b"]):
        mapped["b"] = batch
    time = _free_axes(mesh).get(_names.time, 1)
    if time > 1 and sizes.get("t", 1) % time == 0:
        mapped["t"] = _names.time
    if not mapped:
        return x
    spec = PartitionSpec(*(mapped.get(letter) for letter in axes))
    if AxisType.Explicit in mesh.axis_types:
        return jax.reshard(x, spec)
    return lax.with_sharding_constraint(x, spec)


def _sizes(
    axes: tuple[str, ...], inputs: tuple[jax.Array | None, ...]
) -> dict[str, int]:
    """The length of the axis that each letter stands for."""
    sizes: dict[str, int] = {}
    for letters, array in zip(axes, inputs, strict=True):
        if array is not None:
            sizes |= zip(letters, array.shape, strict=True)
    return sizes


def _assign(
    op: str, mesh: AbstractMesh, sizes: dict[str, int], time_axis: str | None
) -> dict[str, Any]:
    """The mesh axes over which each letter is sharded."""
    free = _free_axes(mesh)
    mapped: dict[str, Any] = {}
    if batch := _batch_axes(mesh, sizes["b"]):
        mapped["b"] = batch
    width = "h" if "h" in sizes else "d"
    for letter, name, what in (
        (width, _names.width, "heads" if width == "h" else "channels"),
        ("t", _names.time, "time steps"),
    ):
        if free.get(name, 1) == 1 or (letter == "t" and time_axis is not None):
            continue
        if sizes[letter] % free[name]:
            raise ValueError(
                f"{op}: {sizes[letter]} {what} do not divide over the mesh axis "
                f"{name!r} of size {free[name]}"
            )
        mapped[letter] = name
    return mapped


def _known() -> set[str]:
    """All names of axes that the ops shard over."""
    return {*_names.batch, _names.width, _names.time}


def _free_axes(mesh: AbstractMesh) -> dict[str, int]:
    """The sizes of the axes that no surrounding `shard_map` has taken."""
    manual = mesh.manual_axes
    return {name: size for name, size in mesh.shape.items() if name not in manual}


def _batch_axes(mesh: AbstractMesh, batch_size: int) -> tuple[str, ...]:
    """The first of the batch axes, as many as divide the batch."""
    free = _free_axes(mesh)
    names = tuple(name for name in _names.batch if free.get(name, 1) > 1)
    while batch_size % math.prod(free[name] for name in names):
        names = names[:-1]
    return names
