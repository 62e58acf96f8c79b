"""From named tensors to a model, and back."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from ssm import param_groups, param_sharding
from ssm.layers.base import recurrence_dtype
from ssm.models import LanguageModel
from ssm.pretrained.architecture import Architecture
from ssm.pretrained.names import Name, Path, Piece, Table, by_tensor
from ssm.pretrained.safetensors import Planned


def abstract(config: Architecture, dtype: DTypeLike) -> nnx.Module:
    """The model of a configuration, with shapes and dtypes in place of parameters."""
    return nnx.eval_shape(lambda: config.build(dtype, nnx.Rngs(0)))


def flat_params(model: nnx.Module) -> dict[Path, Any]:
    """The path of every parameter -> its value."""
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def recurrence_paths(model: nnx.Module) -> set[Path]:
    """The parameters that are never narrower than float32."""
    labels = traverse_util.flatten_dict(param_groups.labels(model))
    return {path for path, label in labels.items() if label == param_groups.RECURRENCE}


def assemble(
    config: Architecture,
    table: Table,
    tensors: Mapping[str, np.ndarray],
    dtype: DTypeLike | None,
    where: str,
) -> Any:
    """The model of a configuration, with its parameters from named tensors.

    Each is cast and laid out over the ambient mesh by itself, the largest first, so
    that the host never holds much besides the model. Tensors that are views of a file
    are read only then.

    Args:
      config: what model.
      table: which tensor is which parameter.
      tensors: by their names.
      dtype: of the parameters; None leaves each as it is. Those of the recurrence are
        float32 at least.
      where: what has the tensors, for errors.

    Raises:
      ValueError: a tensor is missing, has no place in the model, or has another shape;
        or jax would not have the dtype.
    """
    _check_names(set(by_tensor(table)), tensors, where)
    largest = max(tensors.values(), key=lambda tensor: tensor.size)
    main = jnp.dtype(largest.dtype if dtype is None else dtype)
    _check_dtype(main, where)
    try:
        model = abstract(config, main)
    except ValueError as error:
        raise ValueError(f"{where}: no model can be built: {error}") from error
    shapes, recurrence = flat_params(model), recurrence_paths(model)
    assert shapes.keys() == table.keys()
    shardings = _shardings(shapes)
    params = {}
    for path in sorted(shapes, key=lambda path: -shapes[path].size):
        ours = _ours(path, table, tensors, shapes, where)
        target = ours.dtype if dtype is None else main
        if path in recurrence:
            target = recurrence_dtype(target)
        _check_dtype(target, f"{where}: parameter {'/'.join(map(str, path))}")
        params[path] = _place(ours, target, shardings[path])
    graphdef, _ = nnx.split(model)
    return nnx.merge(graphdef, traverse_util.unflatten_dict(params))


def _check_names(wanted: set[str], found: Mapping[str, Any], where: str) -> None:
    missing, extra = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    if missing:
        others = extra or list(found)
        near = difflib.get_close_matches(missing[0], others, n=3, cutoff=0)
        raise ValueError(
            f"{where} has no {_some(missing)}. It has {len(found)} tensors where the "
            f"model has {len(wanted)}; nearest to the first: {_some(near)}"
        )
    if extra:
        raise ValueError(
            f"{where} has {_some(extra)}, which the model has no place for: is its "
            "configuration that of these weights?"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_dtype(dtype: np.dtype, where: str) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype={dtype}, wanted a floating dtype or None")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{where} would be loaded as {dtype}, which jax has only with "
            "jax.config.update('jax_enable_x64', True): do that, or pass "
            "dtype=jnp.float32"
        )


def _ours(
    path: Path,
    table: Table,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[Path, Any],
    where: str,
) -> np.ndarray:
    """A parameter, from its tensor or from those of its entries."""
    shape = shapes[path].shape

    def read(name: Name, wanted: tuple[int, ...]) -> np.ndarray:
        tensor = tensors[name.name]
        try:
            ours = name.ours(tensor)
        except (IndexError, ValueError):  # it has too few axes, or does not divide
            ours = None
        if ours is None or ours.shape != wanted:
            raise ValueError(
                f"{where}: tensor {name.name!r} has shape {tensor.shape}, wanted "
                f"{_their_shape(name, wanted, table, shapes)}: is the configuration "
                "that of these weights?"
            )
        return ours

    names = table[path]
    if isinstance(names, list):
        return np.stack([read(name, shape[1:]) for name in names])
    return read(names, shape)


def _their_shape(
    name: Name, part: tuple[int, ...], table: Table, shapes: Mapping[Path, Any]
) -> str:
    if name.theirs is None:
        return f"one of which {part} is a part"
    theirs, pieces = by_tensor(table)[name.name]
    return str(_joined(theirs, pieces, shapes).shape)


def _joined(theirs: Any, pieces: Sequence[Piece], params: Mapping[Path, Any]) -> Any:
    """What a tensor of theirs will be, without its values."""
    own = {piece.path: params[piece.path] for piece in pieces}
    return jax.eval_shape(lambda own: theirs(*(piece.of(own) for piece in pieces)), own)


def _shardings(shapes: dict[Path, Any]) -> dict[Path, Any]:
    """How each parameter lies on the ambient mesh; None without one."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return dict.fromkeys(shapes)
    return {path: param_sharding.by_size(mesh, shape) for path, shape in shapes.items()}


def _place(array: np.ndarray, dtype: np.dtype, sharding: Any) -> jax.Array:
    """A copy of an array, or of the parts of it that belong on this host's devices."""
    if sharding is None:
        placed = jax.device_put(np.array(array, dtype))
    else:
        placed = jax.make_array_from_callback(
            array.shape, sharding, lambda index: np.array(array[index], dtype)
        )
    # Else the host would hold whatever the devices have not fetched yet.
    return jax.block_until_ready(placed)


def disassemble(model: nnx.Module, table: Table) -> dict[str, Planned]:
    """The parameters of a model as tensors of a file, under the names of a table.

    Parameters of the recurrence that were widened to float32, and have not changed
    since, go back to the dtype of the largest parameter: what is loaded and saved is
    the same file. No number is ever rounded.
    """
    params, recurrence = flat_params(model), recurrence_paths(model)
    main = max(params.values(), key=lambda param: param.size).dtype

    def planned(theirs: Any, pieces: Sequence[Piece]) -> Planned:
        joined = _joined(theirs, pieces, params)
        first, dtype = pieces[0].path, joined.dtype
        if first in recurrence and _holds(main, params[first]):
            dtype = main

        def value() -> np.ndarray:
            return theirs(*(np.asarray(piece.of(params)) for piece in pieces))

        return Planned(dtype, joined.shape, value)

    return {name: planned(*held) for name, held in by_tensor(table).items()}


def _holds(dtype: np.dtype, param: jax.Array) -> bool:
    """Whether every number of a parameter is one of the dtype."""
    return bool(jnp.array_equal(param.astype(dtype).astype(param.dtype), param))


def one_by_one(model: Any) -> Any:
    """The same model with its blocks in a list, where `scan_layers` had stacked them.

    Of arrays of its own only where they were stacked.
    """
    if not isinstance(model, LanguageModel) or not model.stack.scan_layers:
        return model
    model = nnx.merge(*nnx.split(model))
    stack = model.stack
    n_scanned, stacked, rest = stack.n_scanned, [stack.blocks], []
    if stack.n_builders > 1:
        stacked, rest = list(stack.blocks), list(stack.rest)
        del stack.rest

    def block(layer: int) -> nnx.Module:
        turn, place = divmod(layer, stack.n_builders)
        graphdef, state = nnx.split(stacked[place])
        return nnx.merge(graphdef, jax.tree.map(lambda array: array[turn], state))

    stack.blocks = nnx.List([*map(block, range(n_scanned)), *rest])
    stack.scan_layers = False
    return model
