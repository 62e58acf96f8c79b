"""The LRU against numbers worked out elsewhere, and its initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm import LRU, initializers
from tests import golden

# Four steps of an LRU with d_model = d_state = 2, from a NumPy loop in float64.
WORKED = {
    "nu_log": [-2.2503673273, -0.3665129206],
    "theta_log": [-1.2039728043, 0.1823215568],
    "gamma_log": [-0.8303656034, -0.1438410362],
    "b_re": [[0.5, -0.25], [1, 0.75]],
    "b_im": [[0.1, 0.2], [-0.3, 0.4]],
    "c_re": [[1, -0.5], [0.25, 0.6]],
    "c_im": [[0.2, 0.3], [-0.4, 0.1]],
    "d": [0.5, -1],
}
SECOND = {"c2_re": [[0.3, 0.7], [-0.5, 0.2]], "c2_im": [[-0.1, 0.2], [0.4, -0.6]]}
INPUTS = [[1, 0], [0.5, -1], [0, 2], [-1.5, 0.25]]
OUTPUTS = [
    [0.3541567337, 0.6175178370],
    [0.6429321369, 1.1593245260],
    [-0.8413170278, -1.1002530439],
    [-0.9024234927, -1.0883284509],
]
STATE = [-0.3384473223 + 0.2485343892j, -1.2152703632 + 1.2396815806j]
BOTH_WAYS = [
    [1.0181029122, 0.6122726485],
    [0.4392796601, 1.2913912060],
    [-0.4303998072, -0.5380225154],
    [-1.9039541876, -0.8353558708],
]


def with_params(layer, params):
    """The layer with the given values in place of its own."""
    graphdef, state = nnx.split(layer)
    own = nnx.to_pure_dict(state)
    assert own.keys() == params.keys()
    new = {name: jnp.asarray(value, own[name].dtype) for name, value in params.items()}
    for name in own:
        assert new[name].shape == own[name].shape, name
    return nnx.merge(graphdef, new)


def make(d_model, d_state, **options):
    return LRU(d_model, d_state, rngs=nnx.Rngs(0), **options)


@pytest.mark.usefixtures("x64")
def test_worked_example():
    x = jnp.asarray([INPUTS], jnp.float64)
    layer = with_params(make(2, 2, param_dtype=jnp.float64), WORKED)
    y, carry = layer(x)
    # The numbers above have ten digits.
    np.testing.assert_allclose(y[0], OUTPUTS, atol=2e-10)
    np.testing.assert_allclose(carry[0], STATE, atol=2e-10)


@pytest.mark.usefixtures("x64")
def test_worked_example_bidirectional():
    x = jnp.asarray([INPUTS], jnp.float64)
    layer = make(2, 2, param_dtype=jnp.float64, bidirectional=True)
    y, carry = with_params(layer, WORKED | SECOND)(x)
    np.testing.assert_allclose(y[0], BOTH_WAYS, atol=3e-10)
    assert carry is None


@pytest.mark.parametrize("case", ["n12_h8", "n6_h16_len1", "n16_h4_len97"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_published_code(case, dtype):
    """Outputs and gradients of minimal-LRU's own module, run in float64."""
    file = golden.load("lru_layer.npz")
    with jax.enable_x64(dtype == "float64"):
        prefix = f"w/{case}/params/"
        weights = {
            name.removeprefix(prefix): value
            for name, value in file.items()
            if name.startswith(prefix)
        }
        d_state, d_model = weights["B_re"].shape
        layer = make(d_model, d_state, param_dtype=dtype)
        params = {name.lower(): jnp.asarray(v, dtype) for name, v in weights.items()}
        graphdef, _ = nnx.split(with_params(layer, params))
        x = jnp.asarray(file[f"in/{case}/x"], dtype)[None]
        cotangent = jnp.asarray(file[f"in/{case}/cot_y"], dtype)[None]
        y, vjp = jax.vjp(lambda params, x: nnx.merge(graphdef, params)(x)[0], params, x)
        d_params, d_x = vjp(cotangent)

        def close(got, want, tolerance):
            scale = np.max(np.abs(want))
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)

        # float32: ten times the spread of the published code against itself in float64.
        # float64: round-off; the gradients are stored in float32.
        value, gradient = (4e-6, 5e-5) if dtype == "float32" else (1e-12, 1e-7)
        close(y[0], file[f"out64/{case}/y"], value)
        close(d_x[0], file[f"grad64/{case}/x"], gradient)
        for name in weights:
            close(
                d_params[name.lower()], file[f"grad64/{case}/params/{name}"], gradient
            )
        close(layer_decay(graphdef, params), file[f"out64/{case}/lambda"], value)


def layer_decay(graphdef, params):
    return nnx.merge(graphdef, params).decay()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("ring", "want"),
    [
        ((0, 1, 6.28), (-0.3665129206, 1.1442227999, 0.5, -0.1438410362)),
        (
            (0.9, 0.999, 2 * np.pi),
            (-2.5618930863, 1.1447298858, 0.9257430799, -0.9724561985),
        ),
        (
            (0.999, 0.9999, np.pi / 10),
            (-7.1623580061, -1.8510023877, 0.9992250760, -3.2349929749),
        ),
    ],
)
def test_initial_values(ring, want):
    r_min, r_max, max_phase = ring
    nu_log, theta_log = initializers.lru_ring(
        jnp.float64(0.25),
        jnp.float64(0.5),
        r_min=r_min,
        r_max=r_max,
        max_phase=max_phase,
    )
    got = (
        nu_log,
        theta_log,
        jnp.exp(-jnp.exp(nu_log)),
        initializers.lru_gamma_log(nu_log),
    )
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_drawn_eigenvalues_fill_the_ring():
    layer = make(4, 20_000, r_min=0.5, r_max=0.9, max_phase=1.0)
    modulus, phase = np.abs(layer.decay()), np.angle(layer.decay())
    assert modulus.min() >= 0.5 - 1e-6 and modulus.max() <= 0.9 + 1e-6
    # Uniform on the ring: |lambda|^2 and the phase are uniform. 5 standard errors.
    np.testing.assert_allclose(np.mean(modulus**2), (0.25 + 0.81) / 2, atol=6e-3)
    np.testing.assert_allclose(np.mean(phase), 0.5, atol=1.1e-2)


def test_states_and_outputs_start_with_unit_variance():
    """White unit inputs give E|h|^2 = 1 and Var Re(C h) = 1: what gamma is for."""
    layer = make(64, 512, r_min=0.5, r_max=0.95)
    x = jax.random.normal(jax.random.key(1), (4, 512, 64))
    _, carry = layer(x)
    assert abs(np.mean(np.abs(carry) ** 2) - 1) < 0.15
    layer.d[...] = jnp.zeros_like(layer.d[...])
    y, _ = layer(x)
    assert abs(np.var(y[:, 100:]) - 1) < 0.15


def test_types():
    """bfloat16 products and parameters; the recurrence stays in float32."""
    layer = make(8, 4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (2, 9, 8))
    y, carry = layer(x)
    assert y.dtype == jnp.bfloat16 and carry.dtype == jnp.complex64
    for name, param in nnx.to_pure_dict(nnx.state(layer)).items():
        slow = name in layer.recurrence_parameters
        assert param.dtype == (jnp.float32 if slow else jnp.bfloat16), name
    exact = make(8, 4)
    y32, _ = with_params(exact, nnx.to_pure_dict(nnx.state(layer)))(x)
    scale = np.max(np.abs(y32))
    # x, B, C and h are rounded once each: 4 ulp of bfloat16, and sums of 8 of them.
    assert np.max(np.abs(y.astype(jnp.float32) - y32)) < 8 * 2**-8 * scale


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(4, 2)(jnp.ones((2, 3, 5))), r"x has shape .* wanted \(B, T, 4\)"),
        (lambda: make(4, 2)(jnp.ones((3, 4))), r"x has shape \(3, 4\)"),
        (lambda: make(4, 2)(jnp.ones((2, 3, 4), int)), "x has dtype int32"),
        (lambda: make(4, 2, r_min=0.9, r_max=0.5), "wanted 0 <= r_min < r_max <= 1"),
        (
            lambda: make(4, 2, bidirectional=True)(
                jnp.ones((2, 3, 4)), jnp.ones((2, 2))
            ),
            "no carry",
        ),
        (lambda: make(4, 2, bidirectional=True).init_carry(2), "no carry"),
        (lambda: make(4, 2)(jnp.ones((2, 3, 4)), jnp.ones((3, 2))), "h0 has shape"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
