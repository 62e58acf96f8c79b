"""From a config to a task, a model and an optimiser. Only here are names known."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

import ssm
from experiments import families
from experiments.errors import UserError
from experiments.families import Shared
from experiments.tasks.base import Task
from experiments.tasks.byte_text import ByteText
from experiments.tasks.delayed_copy import DelayedCopy
from experiments.tasks.digits import Digits
from experiments.tasks.image import ColourImage, Image
from experiments.tasks.listops import ListOps
from experiments.tasks.pathfinder import Pathfinder, PathX
from experiments.tasks.retrieval import Retrieval
from experiments.tasks.text import Text
from ssm import param_groups
from ssm.blocks import Norm
from ssm.layers.base import SequenceLayer
from ssm.models.hgrn import plain_head
from ssm.models.stack import Pattern

T = TypeVar("T")

TASKS: dict[str, type[Task]] = {
    "byte_text": ByteText,
    "delayed_copy": DelayedCopy,
    "digits": Digits,
    "image": Image,
    "image_colour": ColourImage,
    "listops": ListOps,
    "pathfinder": Pathfinder,
    "pathx": PathX,
    "retrieval": Retrieval,
    "text": Text,
}
MIXERS: dict[str, type[SequenceLayer] | Callable[..., Pattern]] = {
    "griffin": families.griffin_mixers,
    "gru": families.gru_mixers,
    "hawk": families.hawk_mixers,
    "hgrn": families.hgrn_mixers,
    "hgrn2": families.hgrn2_mixers,
    "linear_rnn": families.linear_rnn_mixers,
    "liquid_s4": ssm.LiquidS4,
    "lru": ssm.LRU,
    "lstm": families.lstm_mixers,
    "minimax": families.minimax_mixers,
    "s4": ssm.S4,
    "s4d": ssm.S4D,
    "s5": ssm.S5,
    "transformer": families.transformer_mixers,
    "transnormer": families.transnormer_mixers,
}
BLOCKS: dict[str, Callable[..., Pattern]] = {
    "experts": families.expert_blocks,
    "gated": families.gated_blocks,
    "glu": families.glu_blocks,
    "s4": families.s4_blocks,
}

GROUPS = ("recurrence", "slow", "undecayed", "norm_and_bias", "regular")
"""Of parameters: those of `ssm.param_groups`, and two that a config may ask for."""

HEADS = {"linear": nnx.Linear, "plain": plain_head}
FINAL_NORMS: dict[str, Norm | bool] = {"none": False} | {
    name: norm for name, norm in families.NORMS.items() if not name.startswith("batch")
}


def build_task(config: ConfigDict) -> Task:
    """Return the configured task, its data loaded.

    Raises:
      UserError: there is no such task, it takes other arguments, or its data is absent.
    """
    kind, arguments = _task(config)
    with _section("task"):
        return kind(**arguments)


def prepare_task(config: ConfigDict) -> Task:
    """Make what the configured task reads from `data.cache_dir`; return the task.

    Raises:
      UserError: as `build_task`.
    """
    kind, arguments = _task(config)
    with _section("task"):
        return kind.prepare(**arguments)


def _task(config: ConfigDict) -> tuple[type[Task], dict[str, Any]]:
    kind, arguments = _look_up("task", TASKS, config.task)
    arguments |= config.data.to_dict()
    _check_arguments("task", kind, arguments)
    return kind, arguments


def build_model(config: ConfigDict, task: Task) -> Callable[[jax.Array], nnx.Module]:
    """Return the function that makes the model's initial parameters from a key.

    Raises:
      UserError: there is no such mixer or block, or it takes other arguments. The
        function returned raises one for a value that is refused, and for a language
        model that looks ahead.
    """
    model = config.model
    shared = Shared(
        model.d_model,
        model.n_layers,
        model.dtype,
        model.param_dtype,
        model.implementation or None,
    )
    mixers = _mixers(model, shared)
    blocks, arguments = _look_up("model.block", BLOCKS, model.block)
    make_blocks = functools.partial(blocks, mixers, shared)
    _check_arguments("model.block", make_blocks, arguments)
    with _section("model"):
        head = families.named("head", model.head, HEADS)
        final_norm = families.named("final_norm", model.final_norm, FINAL_NORMS)
    kinds: dict[str, tuple[Callable[..., nnx.Module], dict[str, Any]]] = {
        "classifier": (ssm.SequenceClassifier, {"pooling": model.pooling}),
        "retrieval": (ssm.RetrievalClassifier, {"pooling": model.pooling}),
        "language_model": (
            ssm.LanguageModel,
            {
                "tied": model.tied,
                "head": head,
                "embedding_scale": model.embedding_scale,
                "soft_cap": model.soft_cap or None,
            },
        ),
    }
    kind, of_kind = kinds[task.model_kind]

    def create(key: jax.Array) -> nnx.Module:
        with _section("model"):
            built = kind(
                make_blocks(**arguments),
                n_layers=model.n_layers,
                d_model=model.d_model,
                final_norm=final_norm,
                scan_layers=model.scan_layers,
                remat=model.remat,
                **of_kind,
                **task.model_kwargs,
                **shared.types(),
                rngs=nnx.Rngs(key),
            )
        if task.model_kind == "language_model":
            _refuse_looking_ahead(built)
        return built

    return create


def _mixers(model: ConfigDict, shared: Shared) -> Pattern:
    """The layers of `model.mixer` that take turns; a layer of that name everywhere.

    An empty value, "" or 0, is None for a layer's argument that is None by default.
    """
    kind, arguments = _look_up("model.mixer", MIXERS, model.mixer)
    if not isinstance(kind, type):
        _check_arguments("model.mixer", functools.partial(kind, shared), arguments)
        return kind(shared, **arguments)
    arguments |= {"d_model": shared.d_model} | shared.of_recurrence()
    # The class itself shows the signature of nnx.Module, which takes anything.
    constructor = functools.partial(kind.__init__, None)  # type: ignore[misc]
    _check_arguments("model.mixer", constructor, arguments | {"rngs": None})
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.default is None:
            arguments[name] = arguments.get(name) or None
    return [lambda rngs: kind(**arguments, rngs=rngs)]


def _refuse_looking_ahead(model: nnx.Module) -> None:
    """Raise a UserError if a layer sees what a language model is to predict."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, SequenceLayer) and not module.causal:
            raise UserError(
                f"config section model.mixer: {type(module).__name__} looks ahead, at "
                "what a language model is to predict; set bidirectional=False"
            )


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Return the rate of each update: warm-up, then the schedule."""
    optimizer, steps = config.optimizer, config.train.steps
    warmup_steps = round(optimizer.warmup_fraction * steps)
    if optimizer.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=1e-7,
            peak_value=optimizer.learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=steps,
            end_value=optimizer.final_learning_rate,
        )
    warmup = optax.linear_schedule(1e-7, optimizer.learning_rate, warmup_steps)
    if optimizer.schedule == "waves":
        half_wave = optimizer.wave_steps - warmup_steps
        if half_wave < 1:
            raise UserError(
                f"config key optimizer.wave_steps={optimizer.wave_steps} must be more "
                f"than the {warmup_steps} steps that warm up"
            )
        after = _waves(optimizer.learning_rate, half_wave)
    else:
        after = optax.constant_schedule(optimizer.learning_rate)
    return optax.join_schedules([warmup, after], [warmup_steps])


def _waves(peak: float, half_wave: int) -> optax.Schedule:
    """A cosine from the peak to 0 in so many steps, up again in as many, and so on."""
    return lambda step: peak * (1 + jnp.cos(math.pi * step / half_wave)) / 2


def parameter_groups(config: ConfigDict, model: nnx.Module) -> Any:
    """Return the group of each parameter, as `build_optimizer` wants to have it.

    Raises:
      UserError: `optimizer.regroup` names no group, or no parameter of the model.
    """
    labels = param_groups.labels(model)
    regroup = {}
    for word in config.optimizer.regroup.split():
        name, _, group = word.partition("=")
        if group not in GROUPS:
            raise UserError(
                f"config key optimizer.regroup: {word!r} is not PARAMETER=GROUP with "
                f"one of the groups {', '.join(GROUPS)}"
            )
        regroup[name] = group
    names = {path[-1].key for path, _ in jax.tree.leaves_with_path(labels)}
    if unknown := sorted(set(regroup) - names):
        raise UserError(
            f"config key optimizer.regroup: the model has no parameter {unknown[0]!r} "
            f"(it has {', '.join(sorted(names))})"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, label: regroup.get(path[-1].key, label), labels
    )


def build_optimizer(config: ConfigDict, labels: Any) -> optax.GradientTransformation:
    """Return AdamW, told apart by the label of each parameter, one of `GROUPS`."""
    optimizer = config.optimizer
    rate = learning_rate(config)

    def adamw(rate: optax.Schedule, decay: bool) -> optax.GradientTransformation:
        return optax.adamw(
            rate,
            b1=optimizer.beta1,
            b2=optimizer.beta2,
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay if decay else 0.0,
        )

    def slow(step: jax.Array) -> jax.Array:
        return optimizer.recurrence_factor * rate(step)

    groups = {
        "recurrence": adamw(slow, False),
        "slow": adamw(slow, True),
        "undecayed": adamw(rate, False),
        "norm_and_bias": adamw(rate, optimizer.decay_norm_and_bias),
        "regular": adamw(rate, True),
    }
    assert set(groups) == set(GROUPS)
    clip = (
        optax.clip_by_global_norm(optimizer.clip_norm)
        if optimizer.clip_norm
        else optax.identity()
    )
    return optax.chain(clip, optax.partition(groups, labels))


def _look_up(
    section: str, known: Mapping[str, T], arguments: ConfigDict
) -> tuple[T, dict[str, Any]]:
    """Split `{name, **arguments}` into the class of that name and the arguments."""
    arguments = arguments.to_dict()
    name = arguments.pop("name")
    if name not in known:
        names = ", ".join(sorted(known))
        raise UserError(f"config key {section}.name={name!r} is not one of: {names}")
    return known[name], arguments


def _check_arguments(
    section: str, kind: Callable[..., Any], arguments: Mapping[str, Any]
) -> None:
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise UserError(f"config section {section}: {error}") from error


@contextlib.contextmanager
def _section(name: str) -> Iterator[None]:
    """Say which section of the config holds a value that a constructor refuses."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"config section {name}: {error}") from error
