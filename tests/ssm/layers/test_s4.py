"""S4 against published code, dense matrices, worked numbers and float64."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from ssm import initializers
from ssm.layers import S4, dplr
from tests import golden
from tests.pairwise import mostly_slow
from tests.ssm import law
from tests.ssm.filling import with_params
from tests.ssm.published import close

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)

FILE = "s4_layers.npz"
CASES = {  # the tolerances of float32: outputs, gradients
    "dplr_legs": (2.8e-5, 2.4e-5),
    "dplr_legs_nssm1_lmax64": (3.1e-5, 3.5e-5),
    "dplr_fourier_nssm2": (0.043, 0.13),
    "dplr_legt_rank2": (2.1e-5, 1.2e-4),
    "dplr_legs_bidir": (3.4e-5, 4.9e-5),
}
ROUNDING_OF_DOUBLE = 2.0**-29  # compared with that of float32


def raw_parameters(file, case, prefix="w"):
    """The published ones by their own names, with what C becomes at the first call."""
    prefix = f"{prefix}/{case}/"
    raw = {
        key[len(prefix) :].removeprefix("layer.").removeprefix("kernel."): value
        for key, value in file.items()
        if key.startswith(prefix)
    }
    raw.pop("l_kernel", None)
    return raw


def ours(raw):
    """Our parameters from the published ones, differentiably."""
    params = {
        "log_dt": raw["inv_dt"][:, 0],
        "log_a_re": raw["A_real"],
        "a_im": -raw["A_imag"],
        "d": raw["D"][0],
    }
    pairs = {"p": raw["P"], "b": raw["B"][0], "c": raw["C"][0]}
    if len(raw["C"]) == 2:
        pairs["c2"] = raw["C"][1]
    for name, pair in pairs.items():
        params[f"{name}_re"], params[f"{name}_im"] = pair[..., 0], pair[..., 1]
    return params


def published_block(raw, y):
    """What follows there: exact GELU, a map to twice the channels, a gate."""
    gelu = jax.nn.gelu(y, approximate=False)
    kernel, bias = raw["output_linear.0.weight"], raw["output_linear.0.bias"]
    return jax.nn.glu(gelu @ kernel.T + bias[None, None]), gelu


def published_layer(file, case, dtype, mode):
    layer = nnx.eval_shape(
        lambda: S4(
            6,
            16,
            l_max=int(file[f"in/{case}/l_kernel_after"]),
            n_ssm=file[f"w/{case}/layer.kernel.B"].shape[1],
            bidirectional=case.endswith("bidir"),
            mode=mode,
            param_dtype=dtype,
            rngs=nnx.Rngs(0),
        )
    )
    return nnx.split(layer)[0]


@pytest.mark.parametrize(
    "variant",
    mostly_slow(
        [(d, f) for d in ("float32", "float64") for f in ("convolution", "recurrent")],
        ("float32", "convolution"),
        ("float64", "recurrent"),
    ),
    ids="-".join,
)
@pytest.mark.parametrize("case", CASES)
def test_published_code(case, variant):
    """Outputs, kernels, states and all gradients; a recurrence runs step by step."""
    dtype, form = variant
    file = golden.load(FILE)
    suggested = json.loads(str(file["meta"]))["suggested_tolerance_by_case"][case]
    assert CASES[case] == (suggested["out"], suggested["grad"])
    out_tolerance, grad_tolerance = CASES[case]
    if dtype == "float64":
        out_tolerance *= ROUNDING_OF_DOUBLE
        # Gradients are stored as float32.
        grad_tolerance = max(grad_tolerance * ROUNDING_OF_DOUBLE, 2.0**-24)
    causal = not case.endswith("bidir")
    raw = raw_parameters(file, case) | {"C": file[f"out64/{case}/C_tilde"]}
    with jax.enable_x64(dtype == "float64"):
        graphdef = published_layer(file, case, dtype, form)
        raw = jax.tree.map(lambda v: jnp.asarray(v, dtype), raw)
        x = jnp.asarray(file["in/x"].swapaxes(1, 2), dtype)
        cotangent = jnp.asarray(file["in/cot_y"].swapaxes(1, 2), dtype)

        def loss(raw, x):
            layer = nnx.merge(graphdef, ours(raw))
            if form == "recurrent" and causal:
                y, state = law.run_steps(layer, x, jnp.zeros(x.shape[:2], bool))
            else:
                y, state = layer(x)
            out, gelu = published_block(raw, y)
            kernel = layer.kernel(x.shape[1])
            return jnp.sum(out * cotangent), (out, gelu, kernel, state)

        run = jit(jax.grad(loss, (0, 1), has_aux=True))
        (d_raw, d_x), (y, gelu, kernel, state) = run(raw, x)
    want = {key: value for key, value in file.items() if f"64/{case}/" in key}
    close(y, want[f"out64/{case}/y"].swapaxes(1, 2), out_tolerance)
    close(gelu, want[f"out64/{case}/before_output_linear"], out_tolerance)
    kernels = want[f"out64/{case}/kernel"]
    close(kernel.reshape(kernels.shape), kernels, out_tolerance)
    if causal:
        close(y, want[f"out64/{case}/y_step"].swapaxes(1, 2), out_tolerance)
        close(state, want[f"out64/{case}/final_state_step"][..., :8], out_tolerance)
    close(d_x, want[f"grad64/{case}/x"].swapaxes(1, 2), grad_tolerance)
    gradients = raw_parameters(file, case, "grad64")
    assert gradients.keys() == d_raw.keys() | {"x"}
    for name, gradient in d_raw.items():
        close(gradient, gradients[name], grad_tolerance)


@pytest.mark.parametrize("case", CASES)
def test_published_code_holds_the_same_in_the_place_of_c(case):
    file = golden.load(FILE)
    with jax.enable_x64(True):
        graphdef = published_layer(file, case, "float64", None)
        raw = jax.tree.map(jnp.float64, raw_parameters(file, case))
        layer = nnx.merge(graphdef, ours(raw))
        c = jax.lax.complex(layer.c_re[...], layer.c_im[...])
        held = dplr.truncated(layer.system(), c, layer.l_max)
    want = file[f"out64/{case}/C_tilde"][0]
    tolerance = CASES[case][0] * ROUNDING_OF_DOUBLE
    close(np.stack([held.real, held.imag], axis=-1), want, tolerance)


# N = 4, HiPPO-LegS, dt = 0.1, eight steps, C of ones in the basis of HiPPO.
KERNEL = [0.5470521977, 0.2234393675, 0.0639939291, -0.0045994186]
KERNEL += [-0.0256215502, -0.0239291607, -0.0132522751, -0.0007367579]
AT_NYQUIST = 0.3779982712
U4 = [1, -0.5, 2, 0.25]
LAST_STATE = [0.2277009065, 0.2667378388, 0.1172955283, -0.0646888723]
LAST_OUTPUT = 0.5470454013


def worked_layer(mode=None, phases=(0.0, 0.0), **options):
    """In float64, with the eigenvectors turned by some phases."""
    eigenvalues, p, b, v = (a[..., :2] for a in initializers.legs_dplr(4))
    turn = np.exp(1j * np.asarray(phases))
    p, b, c = p * turn, b * turn, np.ones(4) @ v / turn
    layer = nnx.eval_shape(
        lambda: S4(
            1,
            4,
            l_max=8,
            mode=mode,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(0),
            **options,
        )
    )
    system = dplr.System(
        *map(jnp.asarray, (eigenvalues[None], p[None, None], b[None], [0.1]))
    )
    held = dplr.truncated(system, jnp.asarray(c[None]), 8)
    params = {
        "log_dt": np.log([0.1]),
        "log_a_re": np.log(-eigenvalues.real)[None],
        "a_im": eigenvalues.imag[None],
        "p_re": p.real[None, None],
        "p_im": p.imag[None, None],
        "b_re": b.real[None],
        "b_im": b.imag[None],
        "c_re": held.real,
        "c_im": held.imag,
        "d": np.zeros(1),
    }
    return nnx.merge(*with_params(layer, params)), v / turn


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["convolution", "recurrent"])
def test_worked_example(mode):
    layer, v = worked_layer(mode)
    kernel = layer.kernel(8)[0]
    y, carry = layer(jnp.array(U4)[None, :, None])
    # The numbers above have ten digits.
    np.testing.assert_allclose(kernel, KERNEL, rtol=0, atol=1e-10)
    alternating = (-1.0) ** np.arange(8)
    assert abs(np.sum(kernel * alternating) - AT_NYQUIST) < 1e-10
    state = 2 * np.real(v @ np.asarray(carry[0, 0]))
    np.testing.assert_allclose(state, LAST_STATE, rtol=0, atol=1e-10)
    assert abs(y[0, -1, 0] - LAST_OUTPUT) < 1e-10


@pytest.mark.usefixtures("x64")
def test_phases_of_eigenvectors_are_arbitrary():
    turned, _ = worked_layer(phases=(1.0, -2.5))
    np.testing.assert_allclose(turned.kernel(8)[0], KERNEL, rtol=0, atol=1e-10)


def random_system(rank, width, n):
    """Dissipative, like all that the layer can hold; c, and some states."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    eigenvalues = -rng.uniform(0.1, 1, (width, n)) + 5j * rng.normal(size=(width, n))
    dt = rng.uniform(0.05, 0.5, width)
    system = dplr.System(eigenvalues, normal(rank, width, n), normal(width, n), dt)
    return jax.tree.map(jnp.asarray, (system, normal(width, n), normal(2, width, n)))


def dense_step(system, channel):
    """Abar and Bbar with both of each conjugate pair, by matrices."""
    eigenvalues, p, b, dt = (np.asarray(v) for v in system)
    both = lambda half: np.concatenate([half, half.conj()])  # noqa: E731
    low_rank = sum(np.outer(both(q), both(q).conj()) for q in p[:, channel])
    a = np.diag(both(eigenvalues[channel])) - low_rank
    half, eye = dt[channel] / 2 * a, np.eye(len(a))
    b = dt[channel] * both(b[channel])
    return np.linalg.solve(eye - half, eye + half), np.linalg.solve(eye - half, b)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rank", "length"), [(1, 1), (2, 2), (1, 9), (3, 16)])
def test_equals_dense_matrices(rank, length):
    """The kernel is finite at the Nyquist frequency, which even lengths have."""
    width, n = 3, 4
    system, c, states = random_system(rank, width, n)
    u = jnp.asarray(np.random.default_rng(1).normal(size=(2, length, width)))

    @jit
    def run(system, c, states):
        step = dplr.bilinear(system)
        held = dplr.truncated(system, c, length)
        return {
            "matrix": dplr.matrix(step),
            "kernel": dplr.kernel(system, held[None], length)[0],
            "c": dplr.output_map(system, held, length),
            "free": dplr.free_response(step, c, states, length),
            "last": dplr.last_state(step, u, states),
            "y": dplr.run(step, c, u, states)[0],
        }

    got = jax.tree.map(np.asarray, run(system, c, states))
    want = {key: np.zeros_like(value) for key, value in got.items()}
    want["c"] = np.asarray(c)
    for d in range(width):
        a, b = dense_step(system, d)
        moduli = np.abs(np.linalg.eigvals(a))
        assert moduli.max() < 1
        np.testing.assert_allclose(
            np.sort(np.abs(np.linalg.eigvals(got["matrix"][d]))), np.sort(moduli)
        )
        row = np.concatenate([c[d], np.conj(c[d])])
        powers = [np.linalg.matrix_power(a, j) for j in range(length + 1)]
        want["kernel"][d] = [np.real(row @ power @ b) for power in powers[:length]]
        for i in range(2):
            x = np.concatenate([states[i, d], np.conj(states[i, d])])
            want["free"][i, :, d] = [np.real(row @ power @ x) for power in powers[:-1]]
            for t in range(length):
                x = a @ x + b * u[i, t, d]
                want["y"][i, t, d] = np.real(row @ x)
            want["last"][i, d] = x[:n]
    want.pop("matrix")
    for name, value in want.items():
        # Some dozens of roundings, and what I - Abar^length loses where dt is short.
        close(got[name], value, 1e-13)


@pytest.mark.usefixtures("x64")
def test_twice_as_long_a_kernel_begins_with_the_same_taps():
    system, c, _ = random_system(1, 3, 4)
    once, twice = (dplr.truncated(system, c, length) for length in (9, 18))
    short = dplr.kernel(system, once[None], 9)
    close(dplr.kernel(system, twice[None], 18)[..., :9], short, 1e-13)
    # What is held for twice the length is once that and once more after 9 steps.
    step = dplr.bilinear(system)
    close(dplr.free_response(step, c, step.b, 18)[0, :9].T, short[0], 1e-13)


def wide_twin(layer, **options):
    """The same in float64, where x64 is enabled."""
    sizes = (layer.d_model, layer.d_state)
    wide = nnx.eval_shape(
        lambda: S4(
            *sizes,
            l_max=layer.l_max,
            n_ssm=layer.n_ssm,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(0),
            **options,
        )
    )
    return nnx.merge(*with_params(wide, nnx.to_pure_dict(nnx.state(layer))))


def moved_by_a_rounding(system, held, length):
    """How far the kernel moves, (D,), when all it is made of is rounded to float32."""
    rng = np.random.default_rng(0)

    def rounded(v):
        off = 1 + 2.0**-24 * rng.uniform(-1, 1, (2, *v.shape))
        return v.real * off[0] + (1j * v.imag * off[1] if np.iscomplexobj(v) else 0)

    exact = dplr.kernel(system, held[None], length)[0]
    moves = []
    for _ in range(4):
        other, c = jax.tree.map(rounded, (system, held))
        moves.append(jnp.abs(dplr.kernel(other, c[None], length)[0] - exact))
    return np.max(moves, axis=(0, 2))


@pytest.mark.parametrize("length", mostly_slow([1_024, 16_384], 16_384))
def test_a_long_kernel_in_float32(length):
    """As exact as if eight roundings of its parameters had been the only ones.

    So many there are of each, in the exponentials, products and differences.
    """
    narrow = S4(3, 64, l_max=length, rngs=nnx.Rngs(0))
    got = np.asarray(narrow.kernel(length))
    with jax.enable_x64(True):
        wide = wide_twin(narrow)
        want = np.asarray(wide.kernel(length))
        held = jax.lax.complex(wide.c_re[...], wide.c_im[...])
        bound = 8 * moved_by_a_rounding(wide.system(), held, length)
    assert np.all(np.abs(got - want) <= bound[:, None])
    assert np.all(bound < 1e-4 * np.max(np.abs(want), axis=1))  # it says much


@pytest.mark.parametrize("l_max", [16, 1_000])
def test_c_is_worked_out_again_from_what_is_held(l_max):
    """In float32 too, where I - Abar^16 is close to zero for steps of 1e-3."""
    layer = S4(8, 16, l_max=l_max, dt_max=2e-3, rngs=nnx.Rngs(0))
    c = layer.output_map()
    with jax.enable_x64(True):
        want = np.asarray(wide_twin(layer).output_map())
    # Some dozens of roundings of sums whose terms are as large as C.
    close(c, want, 100 * 2.0**-24)
    assert 0.3 < np.mean(np.abs(want) ** 2) < 3  # drawn with 1


@pytest.mark.usefixtures("x64")
def test_another_rate_is_another_dt_with_the_same_c():
    layer, _ = worked_layer(rate=0.5)
    system = layer.system()
    half = system._replace(dt=system.dt / 2)
    want = dplr.truncated(half, layer.output_map(), 30)
    close(layer.kernel(30), dplr.kernel(half, want[None], 30)[0], 1e-13)


def test_states_decay_for_all_parameters():
    layer = S4(30, 8, l_max=4, n_ssm=30, dt_max=10.0, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 4))
    for name, size in (("log_a_re", 2), ("a_im", 100), ("p_re", 3), ("p_im", 3)):
        param = getattr(layer, name)
        param[...] = size * jax.random.normal(next(keys), param.shape)
    matrices = np.asarray(dplr.matrix(layer.step_map()), np.float64)
    # The norm, not only the eigenvalues: no state ever grows. To rounding.
    assert np.linalg.norm(matrices, 2, axis=(1, 2)).max() < 1 + 8 * 8 * 2.0**-23
    assert np.abs(np.linalg.eigvals(matrices)).max() < 1 + 8 * 2.0**-23


def test_initial_values():
    layer = S4(6, 8, l_max=5, n_ssm=2, rngs=nnx.Rngs(0))
    eigenvalues, p, b, _ = initializers.legs_dplr(8)
    system = layer.system()
    for channel in range(6):
        np.testing.assert_allclose(system.eigenvalues[channel], eigenvalues[:4], 1e-6)
        np.testing.assert_allclose(system.p[0, channel], p[:4], rtol=1e-6)
        np.testing.assert_allclose(system.b[channel], b[:4], rtol=1e-6)
    assert jnp.all((1e-3 <= system.dt) & (system.dt <= 1e-1))
    assert layer.p_re.shape == (1, 2, 4) and layer.c_re.shape == (6, 4)


def test_types():
    """bfloat16 outputs and parameters; the states and the kernel in float32."""
    layer = S4(
        8, 4, l_max=9, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.key(0), (2, 9, 8), jnp.bfloat16)
    for mode in ("convolution", "recurrent"):
        layer.mode = mode
        y, carry = layer(x)
        assert y.dtype == jnp.bfloat16 and carry.dtype == jnp.complex64
    assert layer.kernel(9).dtype == jnp.float32
    for name, param in nnx.to_pure_dict(nnx.state(layer)).items():
        slow = name in layer.recurrence_parameters
        assert param.dtype == (jnp.float32 if slow else jnp.bfloat16), name


@pytest.mark.parametrize("mode", ["convolution", "recurrent"])
def test_empty_sequence(mode):
    layer = S4(3, 4, l_max=8, mode=mode, rngs=nnx.Rngs(0))
    carry = layer.init_carry(2) + 1.0
    y, last = layer(jnp.zeros((2, 0, 3)), carry)
    assert y.shape == (2, 0, 3)
    np.testing.assert_allclose(last, carry, atol=1e-6)


@pytest.mark.parametrize("sizes", [{"data": 2, "time": 4}, {"data": 4, "tensor": 2}])
@pytest.mark.parametrize("mode", mostly_slow(["convolution", "recurrent"]))
def test_ambient_mesh(sizes, mode):
    layer = S4(4, 6, l_max=8, mode=mode, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(0), (4, 8, 4))

    def run(params, x):
        def loss(params, x):
            y, carry = nnx.merge(graphdef, params)(x)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.abs(carry)), (y, carry)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    want = jit(run)(params, x)
    types = (AxisType.Auto,) * len(sizes)
    with jax.set_mesh(jax.make_mesh(tuple(sizes.values()), tuple(sizes), types)):
        got = jit(run)(params, x)
    law.same(got, want, 100 * 2.0**-23)


@pytest.mark.parametrize("mode", mostly_slow(["convolution", "recurrent"]))
def test_inside_a_shard_map(mode):
    layer = S4(4, 6, l_max=8, mode=mode, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 8, 4))
    mesh = jax.make_mesh((4,), ("rows",), (AxisType.Auto,))
    rows = PartitionSpec("rows")
    run = jax.shard_map(layer, mesh=mesh, in_specs=rows, out_specs=(rows, rows))
    law.same(jit(run)(x), jit(layer)(x), 100 * 2.0**-23)


def test_memory_of_a_kernel_is_not_that_of_its_table():
    """Of 64 states at 4097 frequencies in 32 channels: 67 MB in complex64."""
    layer = nnx.eval_shape(lambda: S4(32, 64, l_max=8192, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(layer)

    def loss(params, of):
        return jnp.sum(jnp.abs(of(nnx.merge(graphdef, params))))

    for of in (lambda m: m.kernel(8192), lambda m: m.output_map()):
        compiled = jax.jit(jax.grad(functools.partial(loss, of=of))).lower(params)
        used = compiled.compile().memory_analysis().temp_size_in_bytes
        # Some parts of 2^18 entries each; the kernel itself has 1 MB.
        assert used < 10 * 2**18 * 8, used


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 7}, "d_state=7, wanted an even number: conjugate pairs"),
        ({"l_max": 0}, "l_max=0, wanted the length of sequences"),
        ({"n_ssm": 4}, "n_ssm=4, wanted a divisor of the 6 channels"),
        ({"mode": "convolve"}, "did you mean 'convolution'"),
        ({"dt_min": 0.1, "dt_max": 0.01}, "wanted 0 < dt_min <= dt_max"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        S4(**{"d_model": 6, "d_state": 8, "l_max": 9, "rngs": nnx.Rngs(0)} | options)


def test_other_arguments_are_refused():
    layer = S4(6, 8, l_max=9, rngs=nnx.Rngs(0))
    x = jnp.zeros((2, 3, 6))
    with pytest.raises(ValueError, match="is it of another layer"):
        layer(x, jnp.zeros((2, 6, 8), jnp.complex64))
    with pytest.raises(ValueError, match=r"wanted \(B, T, 6\)"):
        layer(x[..., :5])
    with pytest.raises(ValueError, match="x has dtype int32"):
        layer(x.astype(int))
    layer.mode = "convolution"
    with pytest.raises(ValueError, match="with reset the steps differ"):
        layer(x, reset=jnp.zeros((2, 3), bool))


def test_a_parallel_scan_is_refused():
    S4(6, 8, l_max=9, implementation="scan", rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match="recurrence is not diagonal"):
        S4(6, 8, l_max=9, implementation="associative", rngs=nnx.Rngs(0))
