"""From a config to a task, a model and an optimiser. Only here are names known."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import optax
from flax import nnx
from ml_collections import ConfigDict

import ssm
from experiments.errors import UserError
from experiments.tasks.base import Task
from experiments.tasks.byte_text import ByteText
from experiments.tasks.delayed_copy import DelayedCopy
from experiments.tasks.digits import Digits
from experiments.tasks.listops import ListOps
from ssm.blocks import S4Block
from ssm.layers.base import SequenceLayer

T = TypeVar("T")

TASKS: dict[str, type[Task]] = {
    "byte_text": ByteText,
    "delayed_copy": DelayedCopy,
    "digits": Digits,
    "listops": ListOps,
}
MIXERS: dict[str, Callable[..., SequenceLayer]] = {"lru": ssm.LRU}


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
    """Return the function that makes the model's initial parameters from a key."""
    model = config.model
    mixer, mixer_arguments = _look_up("model.mixer", MIXERS, model.mixer)
    dtypes = {"dtype": model.dtype, "param_dtype": model.param_dtype}
    mixer_arguments |= dtypes | {"d_model": model.d_model}
    mixer_arguments |= {"implementation": model.implementation or None}
    _check_arguments("model.mixer", mixer, mixer_arguments | {"rngs": None})

    def make_block(rngs: nnx.Rngs) -> nnx.Module:
        layer = mixer(**mixer_arguments, rngs=rngs)
        return S4Block(layer, model.d_model, **model.block, **dtypes, rngs=rngs)

    heads: dict[str, tuple[Callable[..., nnx.Module], dict[str, Any]]] = {
        "classifier": (ssm.SequenceClassifier, {"pooling": model.pooling}),
        "language_model": (ssm.LanguageModel, {"tied": model.tied}),
    }
    head, head_arguments = heads[task.model_kind]

    def create(key: jax.Array) -> nnx.Module:
        with _section("model"):
            return head(
                make_block,
                n_layers=model.n_layers,
                d_model=model.d_model,
                final_norm=model.final_norm,
                scan_layers=model.scan_layers,
                remat=model.remat,
                **head_arguments,
                **task.model_kwargs,
                **dtypes,
                rngs=nnx.Rngs(key),
            )

    return create


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Return the rate of each update: warm-up, then the schedule."""
    optimizer, steps = config.optimizer, config.train.steps
    warmup_steps = int(optimizer.warmup_fraction * steps)
    if optimizer.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=1e-7,
            peak_value=optimizer.learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=steps,
            end_value=optimizer.final_learning_rate,
        )
    warmup = optax.linear_schedule(1e-7, optimizer.learning_rate, warmup_steps)
    constant = optax.constant_schedule(optimizer.learning_rate)
    return optax.join_schedules([warmup, constant], [warmup_steps])


def build_optimizer(config: ConfigDict, labels: Any) -> optax.GradientTransformation:
    """Return AdamW, told apart by the label of each parameter.

    "recurrence" has its own rate and no decay, "norm_and_bias" may have no decay.
    """
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

    groups = {
        "recurrence": adamw(lambda n: optimizer.recurrence_factor * rate(n), False),
        "norm_and_bias": adamw(rate, optimizer.decay_norm_and_bias),
        "regular": adamw(rate, True),
    }
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
