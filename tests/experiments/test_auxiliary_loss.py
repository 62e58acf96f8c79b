"""What layers want added to the loss reaches the gradient, and is logged apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import builders, config, distributed, evaluate, program
from ssm.layers import MixtureOfExperts, auxiliary_loss
from tests.experiments import fake
from tests.experiments.conftest import CONFIG
from tests.pairwise import mostly_slow

WEIGHT = 0.3


class WithExperts(fake.FakeModel):
    """Experts in the place of the first dense map."""

    def __init__(self, rngs):
        super().__init__(fake.FEATURES, norm="layer", dropout=0.0, rngs=rngs)
        self.hidden = MixtureOfExperts(
            fake.FEATURES, 5, n_experts=4, top_k=2, balance_weight=WEIGHT, rngs=rngs
        )

    def __call__(self, x, *, key, train):
        return self.head(self.hidden(x, train=train))


@pytest.fixture
def build(fakes, monkeypatch):
    def create(config, task):
        return lambda key: WithExperts(nnx.Rngs(key))

    monkeypatch.setattr(builders, "build_model", create)

    def build(*flags):
        arguments = ["main", f"--config={CONFIG}:plain", "--workdir=unused", *flags]
        return program.build(config.parse(arguments).config)

    return build


def step(built, batch):
    with jax.set_mesh(built.mesh):
        rows = distributed.to_global(batch, distributed.by_batch(built.mesh))
        _, packed = built.train_step(built.init(), rows, built.key())
    return packed.fetch()


def by_hand(built, batch):
    """The mean loss, what is added to it, and the gradient of their sum."""
    with jax.set_mesh(built.mesh):
        state = jax.tree.map(jnp.asarray, jax.device_get(built.init()))

    def loss(params):
        model = nnx.merge(built.graphdef, params, state["model_state"])
        total, weight, _ = built.task.loss(model, batch, train=True)
        added = auxiliary_loss(model)
        return total / weight + added, (total / weight, added)

    gradients, (mean, added) = jax.grad(loss, has_aux=True)(state["params"])
    norms = jax.tree.map(lambda g: float(jnp.linalg.norm(g.ravel())), gradients)
    return mean, added, norms


@pytest.mark.parametrize("accumulate", mostly_slow([1, 2], 2))
def test_the_gradient_is_that_of_the_sum(build, accumulate):
    """Once each, however the batch is cut; here into halves that are alike."""
    built = build(f"--config.train.accumulate_steps={accumulate}")
    batch = built.task.train_batch(0, 0, 16)
    for name in ("x", "label"):
        batch[name][1::2] = batch[name][0::2]
    mean, added, norms = by_hand(built, batch)
    report = step(built, batch)
    sums = {name: total / weight for name, (total, weight) in report["sums"].items()}
    # A few float32 roundings.
    np.testing.assert_allclose(sums["loss"], mean, rtol=1e-5)
    np.testing.assert_allclose(sums["auxiliary_loss"], added, rtol=1e-5)
    assert WEIGHT < added < WEIGHT * 4
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7),
        report["gradient_norms"],
        norms,
    )


def test_an_evaluation_has_no_auxiliary_loss(build):
    built = build()
    with jax.set_mesh(built.mesh):
        state = built.init()
        result = evaluate.evaluate(
            built.eval_step,
            built.task,
            "test",
            state["params"],
            state["model_state"],
            16,
            distributed.by_batch(built.mesh),
        )
    assert set(result["weights"]) == {"loss", "accuracy"}
