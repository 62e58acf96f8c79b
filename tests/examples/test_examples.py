"""Every example runs as a reader would run it, and shows what it says it shows."""

import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["nnx_lru", "linen_lru", "equinox_lru"])
def test_a_layer_in_your_own_model(name: str, capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out


def test_nnx_chunks_are_the_whole():
    tagger = runpy.run_path(str(EXAMPLES / "nnx_lru.py"))["Tagger"]
    model = tagger(d_model=4, n_labels=3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 9, 3))
    whole, _ = model(x)
    first, carry = model(x[:, :4])
    second, _ = model(x[:, 4:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)


def test_linen_trains_every_parameter_of_the_layer():
    model = runpy.run_path(str(EXAMPLES / "linen_lru.py"))["Tagger"](4, 3)
    x = jax.random.normal(jax.random.key(1), (2, 9, 3))
    variables = model.init(jax.random.key(0), x)
    gradient = jax.grad(lambda v: (model.apply(v, x) ** 2).sum())(variables)
    mixer = gradient["params"]["mixer"]
    assert {"nu_log", "theta_log", "gamma_log", "b_re", "c_im", "d"} <= set(mixer)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(mixer))


def test_equinox_agrees_with_the_layer():
    example = runpy.run_path(str(EXAMPLES / "equinox_lru.py"))["LRU"]
    theirs = ssm.LRU(4, 6, rngs=nnx.Rngs(0))
    theirs.d[...] = jnp.zeros(4)
    ours = eqx.tree_at(
        lambda layer: (layer.nu_log, layer.theta_log, layer.b, layer.c),
        example(4, 6, key=jax.random.key(0)),
        (
            theirs.nu_log[...],
            theirs.theta_log[...],
            jnp.stack([theirs.b_re[...], theirs.b_im[...]]),
            jnp.stack([theirs.c_re[...], theirs.c_im[...]]),
        ),
    )
    x = jax.random.normal(jax.random.key(1), (2, 9, 4))
    for got, wanted in zip(ours(x), theirs(x), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_training_script_learns():
    main = runpy.run_path(str(EXAMPLES / "train_lru.py"))["main"]
    assert main(steps=40) > 0.9  # chance is 1/8
