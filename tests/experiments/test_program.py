"""One update: exact under micro-batches, a pure function, and its groups obeyed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm
from experiments import builders, config, distributed, metrics, program
from experiments.errors import UserError
from ssm import param_sharding
from tests.experiments.conftest import CONFIG

pytestmark = pytest.mark.usefixtures("fakes")


def build(*flags: str, variant: str = "plain") -> program.Program:
    command = config.parse(
        ["main", f"--config={CONFIG}:{variant}", "--workdir=w", *flags]
    )
    return program.build(command.config)


def steps(built: program.Program, count: int):
    """Return the state and the reports after some updates."""
    state, reports = built.init(), []
    batch_size = built.config.train.batch_size
    for step in range(count):
        batch = built.task.train_batch(built.config.seed, step, batch_size)
        batch = distributed.to_global(batch, distributed.by_batch(built.mesh))
        state, packed = built.train_step(state, batch, built.key())
        reports.append(packed.fetch())
    return jax.device_get(state), reports


def largest_difference(a, b) -> float:
    return max(
        jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(initial=0), a, b))
    )


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    whole, (report,) = steps(build(), 1)
    parts, (micro,) = steps(build("--config.train.accumulate_steps=2"), 1)
    # 16 terms of order 1, summed in another order.
    tolerance = 16 * np.finfo(np.float32).eps
    for a, b in zip(jax.tree.leaves(report), jax.tree.leaves(micro), strict=True):
        assert abs(a - b) <= tolerance * max(1, abs(a))
    # Adam's first update is rate * sign(gradient): equal unless a gradient is ~0.
    assert largest_difference(whole["params"], parts["params"]) < 1e-4


def test_micro_batches_take_strided_rows():
    """With the rows of a micro-batch all alike, batch norm sees no variance."""
    built = build(
        "--config.train.accumulate_steps=2", "--config.model.block.norm=batch"
    )
    batch = built.task.train_batch(0, 0, 16)
    batch["x"][0::2], batch["x"][1::2] = batch["x"][0], batch["x"][1]
    batch = distributed.to_global(batch, distributed.by_batch(built.mesh))
    state, _ = built.train_step(built.init(), batch, built.key())
    variance = state["model_state"]["norm"]["var"]
    assert np.allclose(variance, 0.99**2, atol=1e-5)  # two updates towards zero


def test_batch_statistics_are_kept_outside_the_parameters():
    state, _ = steps(build("--config.model.block.norm=batch"), 2)
    assert set(state["model_state"]["norm"]) == {"mean", "var"}
    assert set(state["params"]["norm"]) == {"scale", "bias"}
    assert np.abs(state["model_state"]["norm"]["mean"]).max() > 0


def test_the_moving_average_follows_the_parameters():
    built = build(variant="plain,ema")
    initial = jax.device_get(built.init())
    state, _ = steps(built, 1)
    expected = jax.tree.map(
        lambda a, b: 0.9 * a + 0.1 * b, initial["params"], state["params"]
    )
    assert largest_difference(state["ema_params"], expected) < 1e-6
    assert program.evaluated_params(state)["head"]["kernel"].tolist() == (
        state["ema_params"]["head"]["kernel"].tolist()
    )


def test_dropout_differs_by_step_and_not_by_repetition():
    built = build(variant="plain,dropout")
    (_, first), (_, again) = steps(built, 2), steps(built, 2)
    assert first == again
    plain = steps(build(), 2)[1]
    assert first[0]["sums"]["loss"] != plain[0]["sums"]["loss"]


def test_the_same_update_on_data_and_fsdp_axes(monkeypatch):
    monkeypatch.setattr(param_sharding, "MIN_SIZE", 8)
    sharded = build("--config.mesh.fsdp=4")
    kernel = sharded.target["params"]["hidden"]["kernel"]
    assert kernel.sharding.spec == jax.P(None, "fsdp")
    moments = [
        leaf.sharding.spec
        for leaf in jax.tree.leaves(sharded.target["opt_state"])
        if leaf.shape == kernel.shape
    ]
    assert moments == [jax.P(None, "fsdp")] * 2
    a, b = steps(sharded, 3), steps(build(), 3)
    assert largest_difference(a[0]["params"], b[0]["params"]) < 1e-5


def test_a_bad_number_is_named_by_its_tensor():
    _, (report,) = steps(build("--config.task.poison_step=0"), 1)
    assert "hidden/kernel" in metrics.non_finite(report["gradient_norms"])
    assert "loss/0" in metrics.non_finite(report["sums"])


def optimizer_config(**values):
    command = config.parse(["main", f"--config={CONFIG}:plain", "--workdir=w"])
    for name, value in values.items():
        command.config.optimizer[name] = value
    return command.config


def test_the_schedule_warms_up_then_falls_along_a_cosine():
    cfg = optimizer_config(warmup_fraction=0.25, final_learning_rate=0.01)
    rate = builders.learning_rate(cfg)
    assert float(rate(0)) == pytest.approx(1e-7, abs=1e-8)  # computed as 0.03 - 0.03
    assert float(rate(5)) == pytest.approx(0.015, rel=1e-4)
    assert float(rate(10)) == pytest.approx(0.03)
    assert float(rate(25)) == pytest.approx(0.02)
    assert float(rate(40)) == pytest.approx(0.01)
    constant = builders.learning_rate(optimizer_config(schedule="constant"))
    assert float(constant(2)) < 0.03 == pytest.approx(float(constant(4)))
    unwarmed = builders.learning_rate(optimizer_config(warmup_fraction=0.0))
    assert float(unwarmed(0)) == pytest.approx(0.03)


def test_waves_rise_again():
    cfg = optimizer_config(schedule="waves", warmup_fraction=0.25, wave_steps=20)
    rate = builders.learning_rate(cfg)  # 10 steps warm up
    assert [float(rate(step)) for step in (5, 10, 15, 20, 25, 30, 40)] == pytest.approx(
        [0.015, 0.03, 0.015, 0.0, 0.015, 0.03, 0.0], abs=1e-7
    )
    cfg.optimizer.wave_steps = 10
    with pytest.raises(UserError, match="wave_steps=10 must be more than the 10 steps"):
        builders.learning_rate(cfg)


def test_parameters_can_be_regrouped():
    layer = ssm.S5(2, 4, rngs=nnx.Rngs(0))
    usual = builders.parameter_groups(optimizer_config(), layer)
    assert usual["b_re"] == usual["log_dt"] == "recurrence"
    assert usual["d"] == "regular"
    cfg = optimizer_config(regroup="log_dt=undecayed b_re=slow")
    groups = builders.parameter_groups(cfg, layer)
    assert groups == usual | {"log_dt": "undecayed", "b_re": "slow"}
    for wrong, message in (
        ("log_dt", "'log_dt' is not PARAMETER=GROUP"),
        ("log_dt=fast", "one of the groups recurrence, slow, undecayed"),
        ("log_td=slow", "no parameter 'log_td' .*it has b_im, b_re, c_im"),
    ):
        with pytest.raises(UserError, match=message):
            builders.parameter_groups(optimizer_config(regroup=wrong), layer)


def test_groups_have_their_own_rate_and_decay():
    labels = {"a": "recurrence", "b": "norm_and_bias", "c": "regular"}
    labels |= {"d": "slow", "e": "undecayed"}
    params = {name: jnp.ones(2) for name in labels}
    zero = {name: jnp.zeros(2) for name in labels}
    values = {"schedule": "constant", "warmup_fraction": 0.0, "weight_decay": 0.5}
    values |= {"learning_rate": 0.1, "recurrence_factor": 0.5}

    def update(gradients, **more):
        tx = builders.build_optimizer(optimizer_config(**values, **more), labels)
        updates, _ = tx.update(gradients, tx.init(params), params)
        return {name: float(u[0]) for name, u in updates.items()}

    decay = update(zero)
    others = {"d": -0.025, "e": 0.0}
    assert decay == pytest.approx({"a": 0.0, "b": -0.05, "c": -0.05} | others)
    decay = update(zero, decay_norm_and_bias=False)
    assert decay == pytest.approx({"a": 0.0, "b": 0.0, "c": -0.05} | others)
    # Adam's first update is -rate * sign(gradient), to float32 and epsilon.
    moved = update(params)
    others = {"d": -0.075, "e": -0.1}
    wanted = {"a": -0.05, "b": -0.15, "c": -0.15} | others
    assert moved == pytest.approx(wanted, rel=1e-5)


def test_clipping_bounds_the_global_norm():
    labels = {"a": "regular", "b": "recurrence"}
    gradients = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    values = {"clip_norm": 1.0, "epsilon": 1e3, "weight_decay": 0.0}
    values |= {"schedule": "constant", "warmup_fraction": 0.0, "learning_rate": 1e3}
    tx = builders.build_optimizer(optimizer_config(**values), labels)
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    # With so large an epsilon Adam's first update is -rate * gradient / epsilon.
    got = {name: float(update[0]) for name, update in updates.items()}
    assert got == pytest.approx({"a": -0.6, "b": -0.25 * 0.8}, rel=1e-2)


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_products_have_the_precision_that_is_asked_for(precision):
    """Those of the gradients too: the program says so of each."""
    built = build(f"--config.model.matmul_precision={precision}")
    batch = built.task.train_batch(0, 0, built.config.train.batch_size)
    with jax.set_mesh(built.mesh):
        lowered = built.train_step.lower(built.init(), batch, built.key())
    lines = lowered.as_text().splitlines()
    products = [line for line in lines if "dot_general" in line]
    assert len(products) > 2
    wanted = f"precision = [{precision.upper()}, {precision.upper()}]"
    assert all(wanted in line for line in products)
