"""From a config to the functions of a run: initialise, one update, one evaluation.

The train state is a plain dict {step, params, model_state, opt_state[, ema_params]},
and one update a pure function of (state, batch, key).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import builders, distributed, metrics
from experiments.errors import UserError
from experiments.evaluate import EvalStep, make_eval_step
from experiments.tasks.base import Task
from ssm import param_sharding
from ssm.layers.base import auxiliary_loss

P = ParamSpec("P")
R = TypeVar("R")
State = dict[str, Any]
Batch = dict[str, jax.Array]
TrainStep = Callable[[State, Batch, jax.Array], tuple[State, metrics.Packed]]


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config compiles to. Use it inside `with jax.set_mesh(program.mesh)`."""

    config: ConfigDict
    task: Task
    mesh: Mesh
    graphdef: nnx.GraphDef  # of the model
    labels: Any  # the optimiser group of each parameter
    target: State  # shapes, dtypes and shardings
    init: Callable[[], State]
    key: Callable[[], jax.Array]  # of dropout
    train_step: jax.stages.Wrapped  # a TrainStep
    eval_step: EvalStep

    def parameter_count(self) -> int:
        return sum(array.size for array in jax.tree.leaves(self.target["params"]))

    def data(self) -> dict[str, str]:
        """Return what task and data the numbers of a run are about."""
        return {
            "task": self.task.name,
            "provenance": self.task.provenance,
            "data_checksum": self.task.checksum,
        }


def build(
    config: ConfigDict,
    devices: Sequence[jax.Device] | None = None,
    task: Task | None = None,
) -> Program:
    """Build everything that a run needs and compile nothing yet.

    `devices` are by default all there are; to compile ahead of time, those of a
    topology that is only described. `task` is that of the config, if it is there.

    Raises:
      UserError: the config asks for what is not there, or does not fit the devices.
    """
    mesh = distributed.make_mesh(**config.mesh, devices=devices)
    accumulate_steps = config.train.accumulate_steps
    distributed.check_batch(
        "train.batch_size", config.train.batch_size, mesh, accumulate_steps
    )
    distributed.check_batch("evaluate.batch_size", config.evaluate.batch_size, mesh)
    if task is None:
        task = distributed.main_first(lambda: builders.build_task(config))

    create = builders.build_model(config, task)
    model = nnx.eval_shape(lambda: create(jax.random.key(0)))
    graphdef, _ = nnx.split(model)
    labels = builders.parameter_groups(config, model)
    optimizer = builders.build_optimizer(config, labels)

    def new_state(model: nnx.Module) -> State:
        params, model_state = split(model)
        state = {
            "step": jnp.int32(0),
            "params": params,
            "model_state": model_state,
            "opt_state": optimizer.init(params),
        }
        if config.optimizer.ema_decay:
            state["ema_params"] = jax.tree.map(_widen, params)
        return state

    def keys(seed: jax.Array) -> jax.Array:
        return jax.random.split(jax.random.key(seed))

    shapes = jax.eval_shape(new_state, model)
    shardings = param_sharding.by_size(mesh, shapes)
    replicated = distributed.replicated(mesh)

    def init(seed: jax.Array) -> State:
        return new_state(create(keys(seed)[0]))

    jitted_init = jax.jit(init, out_shardings=shardings)
    key = jax.jit(lambda seed: keys(seed)[1], out_shardings=replicated)
    precision = config.model.matmul_precision
    train_step = jax.jit(
        _at_precision(precision, make_train_step(config, graphdef, task, optimizer)),
        donate_argnums=0,
        out_shardings=(shardings, replicated),
    )
    if config.mesh.time > 1:
        batch = task.train_batch(config.seed, 0, config.train.batch_size)
        with jax.set_mesh(mesh):
            _check_time(config, train_step, shapes, batch)
    return Program(
        config=config,
        task=task,
        mesh=mesh,
        graphdef=graphdef,
        labels=labels,
        target=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            shardings,
        ),
        init=lambda: jitted_init(config.seed),
        key=lambda: key(config.seed),
        train_step=train_step,
        eval_step=jax.jit(
            _at_precision(precision, make_eval_step(graphdef, task)),
            out_shardings=replicated,
        ),
    )


def _at_precision(precision: str, function: Callable[P, R]) -> Callable[P, R]:
    """Trace a function with a precision of its matrix products, and their gradients."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision(precision):
            return function(*args, **kwargs)

    return run


def _check_time(
    config: ConfigDict, train_step: jax.stages.Wrapped, state: State, batch: Any
) -> None:
    """Refuse sequences that the devices along `time` cannot share.

    Raises:
      UserError: with what the op that found it says.
    """
    try:
        jax.eval_shape(lambda *a: train_step(*a, jax.random.key(0)), state, batch)
    except ValueError as error:
        if "mesh axis" not in str(error):
            raise
        raise UserError(f"config key mesh.time={config.mesh.time}: {error}") from error


def split(model: nnx.Module) -> tuple[Any, Any]:
    """Return the parameters, and all else that the model holds, as plain dicts."""
    params, model_state = nnx.state(model, nnx.Param, nnx.Not(nnx.Param))
    return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)


def make_train_step(
    config: ConfigDict,
    graphdef: nnx.GraphDef,
    task: Task,
    optimizer: optax.GradientTransformation,
) -> TrainStep:
    """Return the pure function of one update.

    The loss is sum / weight over the global batch, plus what layers want added to it,
    which is reported apart. With micro-batches sum and weight are added up before the
    one division, so the gradient is that of the whole batch; what is added is then the
    mean over micro-batches.
    """
    micro_batches = config.train.accumulate_steps
    ema_decay = config.optimizer.ema_decay
    rate = builders.learning_rate(config)

    def loss(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Any:
        model = nnx.merge(graphdef, params, model_state)
        loss_sum, weight, sums = task.loss(model, batch, key=key, train=True)
        auxiliary = auxiliary_loss(model)
        if auxiliary is not None:
            loss_sum += auxiliary * weight
            sums |= {"auxiliary_loss": (auxiliary * weight, weight)}
        return loss_sum, (weight, sums, split(model)[1])

    def gradient(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Any:
        grads, (weight, sums, model_state) = jax.grad(loss, has_aux=True)(
            params, model_state, batch, key
        )
        return (jax.tree.map(_widen, grads), weight, sums), model_state

    def accumulated(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Any:
        # Strided rows: each device finds its part of every micro-batch on itself.
        micro = jax.tree.map(
            lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch
        )
        micro_keys = jax.random.split(key, micro_batches)

        def body(carry: Any, inputs: Any) -> Any:
            total, model_state = carry
            new, model_state = gradient(params, model_state, *inputs)
            return (jax.tree.map(jnp.add, total, new), model_state), None

        first = jax.tree.map(lambda x: x[0], (micro, micro_keys))
        shapes, _ = jax.eval_shape(gradient, params, model_state, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        carry, _ = jax.lax.scan(body, (zeros, model_state), (micro, micro_keys))
        return carry

    def train_step(
        state: State, batch: Batch, key: jax.Array
    ) -> tuple[State, metrics.Packed]:
        key = jax.random.fold_in(key, state["step"])
        params = state["params"]
        of_batch = gradient if micro_batches == 1 else accumulated
        (grads, weight, sums), model_state = of_batch(
            params, state["model_state"], batch, key
        )
        grads = jax.tree.map(lambda g, p: (g / weight).astype(p.dtype), grads, params)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        params = optax.apply_updates(params, updates)
        new = {
            "step": state["step"] + 1,
            "params": params,
            "model_state": model_state,
            "opt_state": opt_state,
        }
        if ema_decay:
            new["ema_params"] = optax.incremental_update(
                jax.tree.map(_widen, params), state["ema_params"], 1 - ema_decay
            )
        report = {
            "sums": sums,
            "learning_rate": jnp.asarray(rate(state["step"])),
            "gradient_norms": jax.tree.map(_norm, grads),
            "parameter_norms": jax.tree.map(_norm, params),
        }
        return new, metrics.Packed.pack(report)

    return train_step


def _widen(array: jax.Array) -> jax.Array:
    """Make at least float32: sums of many small terms vanish in bfloat16."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _norm(array: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(_widen(array))))


def evaluated_params(state: State) -> Any:
    """Return the parameters to evaluate: their moving average if there is one."""
    if "ema_params" not in state:
        return state["params"]
    return jax.tree.map(
        lambda ema, p: ema.astype(p.dtype), state["ema_params"], state["params"]
    )
