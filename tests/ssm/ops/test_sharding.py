"""Ops under a mesh equal the same ops on one device, in value and in gradient.

In float64, where the order of additions is the only difference: errors stay within a
few hundred units in the last place of values of order one.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ssm import ops

pytestmark = pytest.mark.usefixtures("x64")
B, T, D = 4, 16, 6
TOLERANCE = 1e-12


class Op(NamedTuple):
    """A recurrent op with arrays to call it on."""

    run: Callable[..., tuple[jax.Array, jax.Array]]  # run(*arrays, reset=, **options)
    arrays: tuple[np.ndarray, ...]  # those that are differentiated
    specs: tuple[P, ...]  # how time is sharded in each
    state: P = P()
    reversible: bool = True


def _linear_scan(x, log_a, h0, **options):
    return ops.linear_scan(x, log_a=log_a, h0=h0, **options)


def _rg_lru_scan(x, r, i, a_param, h0, **options):
    return ops.rg_lru_scan(x, r, i, a_param, h0=h0, **options)


def _hgrn_scan(x, f, lower_bound, h0, **options):
    return ops.hgrn_scan(x, f, lower_bound, h0=h0, **options)


def _complex_hgrn_scan(x, f, lower_bound, theta, h0, **options):
    return ops.hgrn_scan(x, f, lower_bound, theta=theta, h0=h0, **options)


def _lightning_attention(q, k, v, log_decay, s0, **options):
    return ops.lightning_attention(q, k, v, log_decay, s0=s0, **options)


def _normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def _complex(*shape, seed=0):
    return _normal(*shape, seed=seed) + 1j * _normal(*shape, seed=seed + 1)


def _decay(array):
    """log_a with a negative real part."""
    return -np.abs(array.real) + 1j * array.imag


OPS = {
    "linear_scan": Op(
        _linear_scan,
        (_normal(B, T, D), -np.abs(_normal(B, T, D, seed=1)), _normal(B, D)),
        (P(None, "time"), P(None, "time"), P()),
    ),
    "linear_scan, constant": Op(
        _linear_scan,
        (_normal(B, T, D), -np.abs(_normal(D)), _normal(B, D)),
        (P(None, "time"), P(), P()),
    ),
    "linear_scan, complex": Op(
        _linear_scan,
        (_complex(B, T, D), _decay(_complex(B, T, D, seed=2)), _complex(B, D)),
        (P(None, "time"), P(None, "time"), P()),
    ),
    "linear_scan, complex and constant": Op(
        _linear_scan,
        (_complex(B, T, D), _decay(_complex(D)), _complex(B, D)),
        (P(None, "time"), P(), P()),
    ),
}
TIME = P(None, "time")
A_PARAM = np.linspace(-6.0, -1.0, D)
BOUND = np.linspace(0.0, 0.9, D)
H, K, V = 2, 3, 5
OPS |= {
    "rg_lru_scan": Op(
        _rg_lru_scan,
        (*(_normal(B, T, D, seed=i) for i in range(3)), A_PARAM, _normal(B, D)),
        (TIME, TIME, TIME, P(), P()),
        reversible=False,
    ),
    "hgrn_scan": Op(
        _hgrn_scan,
        (_normal(B, T, D), _normal(B, T, D, seed=1), BOUND, _normal(B, D)),
        (TIME, TIME, P(), P()),
    ),
    "hgrn_scan, complex": Op(
        _complex_hgrn_scan,
        (
            _complex(B, T, D),
            _normal(B, T, D, seed=1),
            BOUND,
            _normal(D),
            _complex(B, D),
        ),
        (TIME, TIME, P(), P(), P()),
    ),
} | {
    f"lightning_attention, decay of rank {rank}": Op(
        _lightning_attention,
        (
            _normal(B, T, H, K),
            _normal(B, T, H, K, seed=1),
            _normal(B, T, H, V),
            -np.abs(_normal(*((H,) if rank == 1 else (B, T, H, K)[:rank]))),
            _normal(B, H, K, V),
        ),
        (TIME, TIME, TIME, P() if rank == 1 else TIME, P()),
        reversible=False,
    )
    for rank in (1, 3, 4)
}
# Resets on the first step of a device's part, on its last, inside, and none.
RESET = np.zeros((B, T), bool)
RESET[0, [0, 4, 8]] = RESET[1, [3, 7, 15]] = RESET[2, [1, 5, 6]] = True

MESHES = {
    "time": {"time": 8},
    "data, time": {"data": 2, "time": 4},
    "fsdp, tensor, time": {"fsdp": 2, "tensor": 2, "time": 2},
    "data, fsdp, tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "foreign, time": {"foreign": 2, "time": 4},
}


def mesh_of(sizes, kind=AxisType.Auto):
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (kind,) * len(sizes))


def gradients(op: Op, **options: Any):
    """A function of the arrays: outputs, and the gradient of a weighted sum of them."""

    def loss(*arrays):
        results = op.run(*arrays, **options)
        return sum(jnp.real(_weights(r) * r).sum() for r in results), results

    return jax.jit(jax.value_and_grad(loss, range(len(op.arrays)), has_aux=True))


def _weights(result):
    complex_valued = jnp.issubdtype(result.dtype, jnp.complexfloating)
    return (_complex if complex_valued else _normal)(*result.shape, seed=7)


def assert_same(got, wanted):
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = max(1.0, float(jnp.abs(theirs).max()))
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=TOLERANCE * scale)


def directions(name):
    return (False, True) if OPS[name].reversible else (False,)


# Every op on two meshes; the meshes are the same code for all, and one op tries them.
QUICK = {("fsdp, tensor, time", False), ("time", True)}
GRID = [
    pytest.param(
        name,
        mesh,
        reverse,
        marks=() if (mesh, reverse) in QUICK else pytest.mark.slow,
    )
    for name in OPS
    for mesh in MESHES
    for reverse in directions(name)
    if (mesh, reverse) in QUICK or name == "linear_scan"
]


@pytest.mark.parametrize(("name", "mesh", "reverse"), GRID)
def test_ambient_mesh(name, mesh, reverse):
    op, sizes = OPS[name], MESHES[mesh]
    options = {"reverse": True} if reverse else {}
    wanted = gradients(op, reset=jnp.asarray(RESET), **options)(*op.arrays)
    function = gradients(op, reset=jnp.asarray(RESET), **options)
    with jax.set_mesh(mesh_of(sizes)):
        assert_same(function(*op.arrays), wanted)


@pytest.mark.parametrize("name", OPS)
def test_nothing_of_the_size_of_the_sequence_is_exchanged(name):
    op = OPS[name]
    state = jax.eval_shape(op.run, *op.arrays)[1].size
    with jax.set_mesh(mesh_of({"time": 8})):
        arrays = [
            jax.device_put(array, jax.NamedSharding(jax.sharding.get_mesh(), spec))
            for array, spec in zip(op.arrays, op.specs, strict=True)
        ]
        hlo = gradients(op).lower(*arrays).compile().as_text()
    gathered = re.findall(r"(\w+)\[([\d,]*)\]\S* (all-gather|all-to-all)\(", hlo)
    assert gathered
    for _, dims, kind in gathered:
        assert kind == "all-gather"
        assert np.prod([int(n) for n in dims.split(",")]) <= 8 * state


@pytest.mark.parametrize("name", OPS)
def test_no_mesh_and_foreign_axes_wrap_nothing(name):
    op = OPS[name]
    assert "shard_map" not in str(jax.make_jaxpr(op.run)(*op.arrays))
    with jax.set_mesh(mesh_of({"foreign": 8})):
        assert "shard_map" not in str(jax.make_jaxpr(op.run)(*op.arrays))


@pytest.mark.parametrize(
    ("name", "reverse"),
    [(name, reverse) for name in OPS for reverse in directions(name)],
)
def test_time_axis_of_a_surrounding_shard_map(name, reverse):
    op = OPS[name]
    options = {"reverse": True} if reverse else {}
    reset = jnp.asarray(RESET)

    def sharded(*arrays, reset):
        return jax.shard_map(
            lambda reset, *arrays: op.run(
                *arrays, reset=reset, time_axis="time", **options
            ),
            mesh=mesh_of({"time": 8}),
            in_specs=(P(None, "time"), *op.specs),
            out_specs=(P(None, "time"), op.state),
        )(reset, *arrays)

    wanted = gradients(op, reset=reset, **options)(*op.arrays)
    assert_same(gradients(op._replace(run=sharded), reset=reset)(*op.arrays), wanted)


@pytest.mark.parametrize("name", OPS)
def test_one_step_on_each_device(name):
    """The states are exchanged there too, and are not taken for decoding steps."""
    op = OPS[name]
    op = op._replace(
        arrays=tuple(
            array[:, :8] if "time" in spec else array
            for array, spec in zip(op.arrays, op.specs, strict=True)
        )
    )
    reset = jnp.asarray(RESET[:, :8])
    wanted = op.run(*op.arrays, reset=reset)
    mesh = mesh_of({"time": 8})
    with jax.set_mesh(mesh):
        assert_same(jax.jit(op.run)(*op.arrays, reset=reset), wanted)
    sharded = jax.shard_map(
        lambda reset, *arrays: op.run(*arrays, reset=reset, time_axis="time"),
        mesh=mesh,
        in_specs=(TIME, *op.specs),
        out_specs=(TIME, op.state),
    )
    assert_same(jax.jit(sharded)(reset, *op.arrays), wanted)


@pytest.mark.parametrize("name", OPS)
def test_a_surrounding_shard_map_is_left_alone(name):
    """Without `time_axis` the caller's parts are sequences of their own."""
    op = OPS[name]
    with jax.set_mesh(mesh_of({"time": 2, "data": 4})):
        out, _ = jax.jit(
            jax.shard_map(
                lambda *arrays: op.run(*arrays),
                in_specs=op.specs,
                out_specs=(P(None, "time"), P("time")),
                axis_names={"time"},
            )
        )(*op.arrays)
    halves = [
        op.run(
            *(
                jnp.split(array, 2, axis=1)[half] if "time" in spec else array
                for array, spec in zip(op.arrays, op.specs, strict=True)
            )
        )[0]
        for half in range(2)
    ]
    assert_same(out, jnp.concatenate(halves, axis=1))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "linear_scan" else pytest.mark.slow)
        for name in OPS
    ],
)
def test_second_derivative_along_time(name):
    op = OPS[name]

    def curvature(*arrays):
        """The gradient of the squared norm of the gradient."""

        def inner(*arrays):
            out, last = op.run(*arrays)
            return jnp.sum(jnp.abs(out) ** 2) + jnp.sum(jnp.abs(last) ** 2)

        def outer(*arrays):
            grads = jax.grad(inner, range(len(arrays)))(*arrays)
            return sum(jnp.sum(jnp.abs(g) ** 2) for g in grads)

        return jax.grad(outer, range(len(arrays)))(*arrays)

    wanted = jax.jit(curvature)(*op.arrays)
    with jax.set_mesh(mesh_of({"time": 4, "data": 2})):
        assert_same(jax.jit(curvature)(*op.arrays), wanted)


def test_eager_vmapped_and_explicit():
    op = OPS["linear_scan"]
    wanted = op.run(*op.arrays)
    with jax.set_mesh(mesh_of({"time": 4, "foreign": 2})):
        assert_same(op.run(*op.arrays), wanted)
        stacked = [jnp.stack([array, array]) for array in op.arrays]
        assert_same(
            jax.vmap(op.run)(*stacked),
            jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), wanted),
        )
    with jax.set_mesh(mesh_of({"time": 4, "data": 2}, AxisType.Explicit)):
        assert_same(jax.jit(op.run)(*op.arrays), wanted)


def test_one_step_and_an_odd_batch_need_no_division():
    x, log_a, h0 = OPS["linear_scan"].arrays
    for part in (x[:, :1], log_a[:, :1], h0), (x[:3], log_a[:3], h0[:3]):
        wanted = _linear_scan(*part)
        with jax.set_mesh(mesh_of({"data": 4, "time": 2})):
            assert_same(jax.jit(_linear_scan)(*part), wanted)


def test_refusals_name_both_numbers():
    x, log_a, h0 = OPS["linear_scan"].arrays
    with jax.set_mesh(mesh_of({"time": 8})):
        with pytest.raises(ValueError, match=r"15 time steps .* 'time' of size 8"):
            ops.linear_scan(x[:, :15], log_a=log_a[:, :15])
        with pytest.raises(ValueError, match=r"time_axis='time' is no axis of a surr"):
            ops.linear_scan(x, log_a=log_a, time_axis="time")
    with jax.set_mesh(mesh_of({"tensor": 4, "data": 2})):
        with pytest.raises(ValueError, match=r"6 channels .* 'tensor' of size 4"):
            ops.linear_scan(x, log_a=log_a)
    with pytest.raises(ValueError, match="time_axis='rows'"):
        ops.linear_scan(x, log_a=log_a, time_axis="rows")


def test_axis_names_are_the_users():
    x, log_a, h0 = OPS["linear_scan"].arrays
    wanted = _linear_scan(x, log_a, h0)
    try:
        ops.axis_names(batch=("replica",), time="sequence")
        with jax.set_mesh(mesh_of({"replica": 2, "sequence": 4})):
            program = jax.make_jaxpr(_linear_scan)(x, log_a, h0)
            assert "replica" in str(program) and "sequence" in str(program)
            assert_same(jax.jit(_linear_scan)(x, log_a, h0), wanted)
    finally:
        ops.axis_names()
