"""The two-dimensional HGRU: worked examples, what a pixel sees, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm
from ssm.layers import HGRU, HGRU2D
from ssm.models import hgrn
from ssm.models.stack import Coupled
from tests.ssm.filling import HGRU_X, hgru_of_waves
from tests.ssm.law import QUICK_COMPILE

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)


@pytest.mark.usefixtures("x64")
def test_worked_example():
    options = {"lower_bound": 0.25, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    layer = hgru_of_waves(HGRU2D(2, **options))
    layer.theta_reverse[...] = jnp.array([0.5, 0.2])
    y, carry = layer(jnp.array([HGRU_X], float))
    want = [0.68830732, 0.71059381, -1.02648215, 2.02151524]
    want += [1.22664198, -0.44879897, 1.22858292, 0.58870222]
    np.testing.assert_allclose(y.ravel(), want, atol=1e-8)  # their digits
    assert carry is None and not layer.causal


def test_worked_scans():
    """Four scans over a grid of numbers, of which the gates are given."""
    layer = HGRU2D(1, real=True, rngs=nnx.Rngs(0))
    keep = jnp.array([[0.5, 0.9], [0.8, 0.6]]).reshape(1, 2, 2, 1)
    written = jnp.array([[1.0, 2], [-1, 0.5]]).reshape(1, 2, 2, 1)
    c, f = written / (1 - keep), jnp.log(keep / (1 - keep))
    rows = layer._both_ways(c, f, None)
    c, f = jnp.swapaxes(c, 1, 2), jnp.swapaxes(f, 1, 2)
    h = rows + jnp.swapaxes(layer._both_ways(c, f, None), 1, 2)
    want = [[4.5, 9.35], [-2.8, 2.6]]
    np.testing.assert_allclose(h[0, ..., 0], want, atol=1e-5)


@pytest.mark.parametrize("real", [True, False])
def test_equals_a_loop_over_lines(real):
    """Values and gradients: every row and column by itself, on an oblong grid."""
    options = {"real": real, "lower_bound": 0.2}
    layer = HGRU2D(4, height=2, rngs=nnx.Rngs(0), **options)
    graphdef, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(0), (2, 6, 4))
    bound = jnp.linspace(0, 0.9, 4)

    def ours(params, x):
        return nnx.merge(graphdef, params)(x, lower_bound=bound)[0]

    def by_lines(params, x):
        layer = nnx.merge(graphdef, params)
        c, f = layer.inputs(x)
        h = jnp.zeros_like(c)
        lines = [slice(0, 3), slice(3, 6)] + [slice(i, 6, 3) for i in range(3)]
        for line in lines:
            scan = functools.partial(layer.scan, c[:, line], f[:, line], bound)
            for way in (False, True):
                h_line, _ = scan(theta=layer.phase(reverse=way), reverse=way)
                h = h.at[:, line].add(h_line)
        return layer.output(x, h)

    def gradient(run):
        loss = lambda *a: jnp.sum(jnp.sin(run(*a)))  # noqa: E731
        return jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    got, want = gradient(ours), gradient(by_lines)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # A hundred roundings.
        scale = max(np.abs(w).max(), 1)
        np.testing.assert_allclose(g, w, rtol=0, atol=100 * 2**-23 * scale)


def test_a_pixel_sees_its_row_and_its_column():
    layer = HGRU2D(3, height=3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 12, 3))

    @jit
    @jax.grad
    def gradient(x):
        return jnp.sum(layer(x)[0][0, 5])  # of row 1, column 1

    seen = np.abs(gradient(x)).max(axis=-1).reshape(3, 4) > 0
    want = np.zeros((3, 4), bool)
    want[1, :] = want[:, 1] = True
    np.testing.assert_array_equal(seen, want)


def test_one_row_is_the_sequence_and_itself():
    """A grid of one row: its scans, and those of columns of one pixel, c twice."""
    options = {"real": True, "lower_bound": 0.3}
    grid = HGRU2D(4, height=1, rngs=nnx.Rngs(0), **options)
    line = HGRU(4, bidirectional=True, rngs=nnx.Rngs(0), **options)
    x = jax.random.normal(jax.random.key(0), (1, 5, 4))
    c, f = line.inputs(x)
    ahead, _ = line.scan(c, f, None)
    back, _ = line.scan(c, f, None, reverse=True)
    own = 2 * (1 - 0.3) * jax.nn.sigmoid(-f) * c
    want = line.output(x, ahead + back + own)
    np.testing.assert_allclose(jit(grid)(x)[0], want, atol=1e-5)


def test_classifier_of_images():
    blocks = hgrn.hgrn_blocks(hgrn.TINY)

    def around(rngs):
        mixer = HGRU2D(12, height=2, rngs=rngs)
        return ssm.blocks.S4Block(mixer, 12, rngs=rngs)

    model = ssm.SequenceClassifier(
        Coupled(around, blocks.make_coupling),
        n_layers=2,
        d_model=12,
        n_classes=3,
        d_input=1,
        rngs=nnx.Rngs(0),
    )
    assert jit(model)(jnp.ones((2, 8, 1))).shape == (2, 3)


def make(**options):
    return HGRU2D(4, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make()(jnp.ones((2, 6, 4))), "x has 6 steps, wanted a square"),
        (
            lambda: make(height=4)(jnp.ones((2, 6, 4))),
            "wanted a multiple of height=4",
        ),
        (lambda: make(height=0), "height=0, wanted at least 1, or None"),
        (lambda: make()(jnp.ones((2, 4, 5))), r"wanted \(B, T, 4\)"),
        (lambda: make()(jnp.ones((2, 4, 4)), jnp.ones((2, 4))), "no carry"),
        (lambda: make().init_carry(2), "no carry"),
        (
            lambda: make()(jnp.ones((2, 4, 4)), reset=jnp.zeros((2, 4), bool)),
            "wanted reset=None",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
