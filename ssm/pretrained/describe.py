"""The configuration of a model, read off the model itself."""

from collections.abc import Collection
from typing import Any

from flax import nnx

from ssm.models import LanguageModel
from ssm.pretrained.architecture import Architecture
from ssm.pretrained.weights import abstract, flat_params

# What changes how a model is computed or trained, not what it computes.
INDIFFERENT = (
    "dtype",
    "param_dtype",
    "implementation",
    "remat",
    "rate",
    "balance_weight",
)


def describe(model: nnx.Module, architectures: Collection[type[Architecture]]) -> Any:
    """The configuration that says all there is to say of a model.

    That is one of which the same model can be built again: the same modules, with the
    same settings and parameters of the same shapes.

    Raises ValueError if there is none, naming the first difference.
    """
    parts = _parts(model)
    for architecture in architectures:
        if parts and parts <= set(architecture.parts):
            config = architecture.of(model)
            _check_said(model, config)
            return config
    of = ", ".join(sorted(part.__name__ for part in parts)) or "no known blocks"
    known = ", ".join(architecture.__name__ for architecture in architectures)
    raise ValueError(
        f"a {type(model).__name__} of {of} is none of the models that can be saved: "
        f"{known}"
    )


def _parts(model: nnx.Module) -> set[type]:
    """The types of the blocks of a language model and of what is in them."""
    if not isinstance(model, LanguageModel):
        return set()
    parts = set()
    for block in model.stack.blocks:
        members = vars(block).values()
        modules = [member for member in members if isinstance(member, nnx.Module)]
        parts |= {type(module) for module in (block, *modules)}
    return parts


def _check_said(model: nnx.Module, config: Architecture) -> None:
    (dtype, *_) = (param.dtype for param in flat_params(model).values())
    has, said = _settings(model), _settings(abstract(config, dtype))
    for path in said | has:
        mine, theirs = has.get(path, "absent"), said.get(path, "absent")
        if mine != theirs:
            raise ValueError(
                f"{'/'.join(map(str, path))} of this model is {mine}, wanted {theirs}: "
                f"a {type(config).__name__} cannot be otherwise"
            )


def _settings(model: nnx.Module) -> dict[tuple[Any, ...], Any]:
    """The kinds of all modules, their settings, and the shapes of their parameters."""
    modules = list(nnx.iter_modules(model))
    kinds = {path: type(module).__name__ for path, module in reversed(modules)}
    settings = {
        (*path, name): value
        for path, module in modules
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in INDIFFERENT
        and not isinstance(value, nnx.Module | nnx.Variable)
    }
    shapes = {path: param.shape for path, param in flat_params(model).items()}
    return kinds | settings | shapes
