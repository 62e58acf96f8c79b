"""HGRN2 against numbers worked out elsewhere and a plain loop; its log decays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm.layers import HGRN2, HGRU
from ssm.layers.hgrn2 import log_forget
from tests.ssm import law, long
from tests.ssm.filling import with_params

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)


@pytest.mark.usefixtures("x64")
def test_worked_example():
    """One head of two channels; the state and o are from flash-linear-attention."""
    weights = {
        "q_proj": [[1, 0.5], [-0.5, 1]],
        "f_proj": [[0.5, -1], [1, 0.5]],
        "i_proj": [[1, -1], [0.5, 0.5]],
        "o_proj": np.eye(2),
    }
    params = {name: {"kernel": np.array(w).T} for name, w in weights.items()}
    layer = HGRN2(2, 1, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    layer = nnx.merge(*with_params(layer, params | {"g_norm": {"scale": [1, 1]}}))
    x = jnp.array([[[1, -0.5], [0.5, 2], [-1, 0.25]]], float)
    y, carry = layer(x, lower_bound=jnp.array([0.25, 0.5]))
    o = np.array([0.08940717, 0.01490119, -0.91941055, 1.22615354])
    o = np.concatenate([o, [0.07345935, -0.07181638]]).reshape(3, 2) / np.sqrt(2)
    want = o / np.sqrt(np.mean(o**2, axis=1, keepdims=True) + 1e-5)
    # They have eight decimals, and o is as small as 0.05 where the norm divides by it.
    np.testing.assert_allclose(y[0], want, atol=1e-8 / 0.05)
    state = [[-1.05336718, 0.20977083], [-0.38815016, -0.03497042]]
    np.testing.assert_allclose(carry[0, 0], state, atol=1e-8)


def plain_loop(layer, x, bound):
    """The layer's equations, a step and a head at a time."""
    q, f, v = (p(x) for p in (layer.q_proj, layer.f_proj, layer.i_proj))
    q = q * jax.nn.sigmoid(q)
    bound = bound[None, None]
    decay = bound + (1 - bound) * jax.nn.sigmoid(f)
    batch, time, _ = x.shape
    q, v, decay = (a.reshape(batch, time, layer.n_heads, -1) for a in (q, v, decay))
    state = jnp.zeros((batch, layer.n_heads, q.shape[-1], q.shape[-1]), x.dtype)
    outputs = []
    for t in range(time):
        written = (1 - decay[:, t])[..., None] * v[:, t][:, :, None]
        state = decay[:, t][..., None] * state + written
        outputs.append(jnp.einsum("bhk,bhkv->bhv", q[:, t], state))
    o = jnp.stack(outputs, axis=1).reshape(x.shape) / np.sqrt(q.shape[-1])
    o = o / jnp.sqrt(jnp.mean(o**2, axis=-1, keepdims=True) + 1e-5)
    return layer.o_proj(o * layer.g_norm.scale[...][None, None]), state


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_a_plain_loop(dtype):
    """Outputs, state, and gradients of parameters, inputs and bound, in float64."""

    def gradient(run, layer, x, bound):
        graphdef, params = nnx.split(layer)

        @jit
        def value(params, x, bound):
            def loss(params, x, bound):
                out = run(nnx.merge(graphdef, params), x, bound)
                return sum(jnp.sum(jnp.sin(leaf)) for leaf in out), out

            return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, bound)

        return value(params, x, bound)

    def ours(layer, x, bound):
        return layer(x, lower_bound=bound)

    with jax.enable_x64(True):
        wide = HGRN2(8, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        wide.g_norm.scale[...] = jnp.linspace(0.5, 2, 8)
        x = jax.random.normal(jax.random.key(1), (2, 7, 8), jnp.float64)
        bound = jnp.linspace(0, 0.9, 8)
        (_, want), want_gradients = gradient(plain_loop, wide, x, bound)
        layer = HGRN2(8, 2, param_dtype=dtype, rngs=nnx.Rngs(0))
        layer = nnx.merge(*with_params(layer, nnx.to_pure_dict(nnx.state(wide))))
        (_, got), got_gradients = gradient(
            ours, layer, x.astype(dtype), bound.astype(dtype)
        )
        # Sums of some tens of terms, a few deep, and a norm.
        tolerance = 1e-12 if dtype == "float64" else 100 * 2**-23
        law.same(got, want, tolerance)
        law.same(
            nnx.to_pure_dict(got_gradients[0]),
            nnx.to_pure_dict(want_gradients[0]),
            tolerance,
        )
        law.same(got_gradients[1:], want_gradients[1:], tolerance)


@pytest.mark.usefixtures("x64")
def test_log_decays_are_exact():
    """Near one and near zero, in value and in gradient, against longer arithmetic."""
    f = np.concatenate([np.linspace(-80, 30, 221), [-0.01, 0.01]])
    for bound in (0.0, 1e-6, 0.3, 0.99):
        wide = np.longdouble(f)
        kept, gone = 1 / (1 + np.exp(-wide)), 1 / (1 + np.exp(wide))
        b = np.longdouble(np.float32(bound))
        decay = b + (1 - b) * kept
        near = np.where((1 - b) * gone < 0.5, (1 - b) * gone, 0)
        want = np.where(near > 0, np.log1p(-near), np.log(decay))
        bounds = jnp.full(f.shape, bound, jnp.float32)
        got, pull = jax.vjp(log_forget, jnp.asarray(f, jnp.float32), bounds)
        by_f, by_bound = pull(jnp.ones_like(got))
        # f is rounded to float32: where the decay is exp(f), that is what it moves by.
        rounded = 2.0**-24 * np.abs(f) * np.float64((1 - b) * kept * gone / decay)
        np.testing.assert_array_less(
            np.abs(got - np.float64(want)), rounded + 8 * 2**-24 * np.abs(want) + 1e-37
        )
        np.testing.assert_allclose(
            by_f, np.float64((1 - b) * kept * gone / decay), rtol=100 * 2**-24
        )
        np.testing.assert_allclose(
            by_bound, np.float64(gone / decay), rtol=200 * 2**-24
        )


@pytest.mark.parametrize("bound", [0.0, 0.5])
def test_log_decays_are_finite_in_every_mode(bound):
    """Where the sigmoid underflows: forwards, backwards and twice."""
    f = jnp.array([-1000.0, -200, -100, 0, 100, 1000])
    one = functools.partial(log_forget, lower_bound=jnp.asarray(bound))
    for derive in (jax.grad, jax.jacfwd, lambda g: jax.grad(jax.grad(g))):
        assert np.isfinite(jax.vmap(derive(one))(f)).all()
    if bound == 0:
        np.testing.assert_allclose(jax.vmap(one)(f[:3]), f[:3])


@pytest.mark.slow
@pytest.mark.parametrize(("log_decay", "bound"), [(None, 0.9), (-20.0, 0.0)])
def test_bfloat16_over_4096_steps(log_decay, bound):
    """States that live long, and ones that lose exp(-20) a step and channel."""
    x = np.random.default_rng(0).normal(size=(1, 4096, 16))

    def change(params):
        if log_decay is not None:
            # What is constant in x alone reaches the gate.
            x[..., 0] = 1
            kernel = params["f_proj"]["kernel"]
            params["f_proj"]["kernel"] = jnp.zeros_like(kernel).at[0].set(log_decay)

    def make(**types):
        return HGRN2(16, 2, lower_bound=bound, rngs=nnx.Rngs(0), **types)

    got, want, carry = long.run(make, x, change)
    assert carry.dtype == jnp.float32
    # Half a rounding each of: three projections, silu and scale of q, what is written,
    # o, the norm and y. The gate's enters what is written and, for as many steps as
    # that lives, the decay. As the root of their number, relative to o as its terms
    # are large, and to y through the norm over all heads. Where o is one product for
    # each of two heads, both may be small beside their terms: over all steps that adds
    # the root of the logarithm of half a rounding, 2.5.
    error, scale = got - want, long.root_mean_square(want)
    factor = 4 if log_decay is None else 4 * 2.5
    assert long.root_mean_square(error) < factor * long.HALF_A_ROUNDING * scale


def test_size_and_type_of_the_carry():
    layer = HGRN2(12, 3, rngs=nnx.Rngs(0))
    carry = layer.init_carry(5)
    assert carry.shape == (5, 3, 4, 4) and carry.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: HGRN2(4, 2, rngs=nnx.Rngs(0))(jnp.ones((2, 3, 5))),
            r"x has shape .* wanted \(B, T, 4\)",
        ),
        (lambda: HGRN2(4, 3, rngs=nnx.Rngs(0)), "n_heads=3, wanted a divisor"),
        (lambda: HGRN2(4, 0, rngs=nnx.Rngs(0)), "n_heads=0, wanted a divisor"),
        (
            lambda: HGRN2(4, 2, rngs=nnx.Rngs(0))(
                jnp.ones((2, 3, 4)), HGRU(4, rngs=nnx.Rngs(0)).init_carry(2)
            ),
            r"HGRN2: the carry is complex\[2, 4\], wanted real\[2, 2, 2, 2\], as init",
        ),
        (lambda: HGRN2(4, 2, lower_bound=-1, rngs=nnx.Rngs(0)), "wanted 0 <= it < 1"),
        (
            lambda: HGRN2(4, 2, rngs=nnx.Rngs(0))(
                jnp.ones((2, 3, 4)), lower_bound=jnp.ones(3)
            ),
            r"lower_bound has shape \(3,\), wanted \(4,\) = \(d_model,\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
