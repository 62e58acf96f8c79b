"""The ops, forward and backward, beside what JAX offers for the same equations.

On the CPU at sizes that take milliseconds, on a TPU or GPU at sizes that memory bounds.
Every program is checked against the plain loop of `lax.scan` before it is timed.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.stages import Wrapped

from benchmarks.harness import at_least, check_close, interleaved, table
from ssm import ops

Function = Callable[..., jax.Array]
KERNELS = ("pallas_tpu", "mosaic_gpu")
SCANS = ("loop", "scan", "associative", *KERNELS)
# Bytes/s of the memory of one device, from the vendors' figures.
PEAK = {
    "NVIDIA H100 80GB HBM3": 3350e9,
    "NVIDIA H200": 4800e9,
    "NVIDIA B200": 8000e9,
    "TPU v5 lite": 819e9,
    "TPU v5p": 2765e9,
    "TPU v6 lite": 1640e9,
    "TPU7x": 3690e9,
}
# The decays stay under 0.999, so a rounding error is amplified by at most 1000 * 6e-8;
# of bfloat16 the results alone are rounded, to 2**-9, twice in a gradient.
TOLERANCES = {"float32": 1e-4, "complex64": 1e-4, "bfloat16": 2e-2}


class Case(NamedTuple):
    """An op on arrays of one shape and dtype, and what to time beside it."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    arguments: tuple[Any, ...]  # all differentiated
    ours: Callable[..., jax.Array]  # ours(*arguments, implementation=)
    truth: Function  # the loop of lax.scan
    others: Mapping[str, Function]
    planes: tuple[int, int]  # of the size of x that forward, backward must touch
    goals: Mapping[str, float]  # on CPU, forward and backward: times faster
    implementations: tuple[str, ...] = SCANS


def associative_scan(x: jax.Array, a: jax.Array) -> jax.Array:
    """The parallel prefix."""

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    a = jnp.broadcast_to(a, x.shape)
    return lax.associative_scan(combine, (a, x), axis=1)[1]


def lax_scan(x: jax.Array, a: jax.Array) -> jax.Array:
    """The sequential loop over a time-major copy."""

    def step(h, inputs):
        x_t, a_t = inputs
        h = a_t * h + x_t
        return h, h

    time_major = x.swapaxes(0, 1), jnp.broadcast_to(a, x.shape).swapaxes(0, 1)
    return lax.scan(step, jnp.zeros_like(x[:, 0]), time_major)[1].swapaxes(0, 1)


Scan = Callable[[jax.Array, jax.Array], jax.Array]
OTHER_SCANS: dict[str, Scan] = {
    "associative_scan": associative_scan,
    "lax.scan": lax_scan,
}


def normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Random numbers of order one."""
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def linear_scan_case(
    shape: tuple[int, int, int],
    dtype: str,
    goals: Mapping[str, float],
    constant: bool = False,
) -> Case:
    """`linear_scan` with decays up to 0.999; in bfloat16 with `log_a`."""
    of_decay = shape[-1:] if constant else shape
    a = jnp.clip(jax.nn.sigmoid(normal(1, of_decay, "float32") + 2), max=0.999)
    if dtype == "complex64":
        angle = jax.random.uniform(jax.random.key(2), of_decay, maxval=jnp.pi)
        a = a * jnp.exp(1j * angle)
    log = dtype == "bfloat16"
    decay = jnp.log(a).astype(dtype) if log else a

    def ours(x, decay, implementation=None):
        name = "log_a" if log else "a"
        return ops.linear_scan(x, implementation=implementation, **{name: decay})[0]

    def by(scan: Scan) -> Function:
        def run(x, decay):
            wide = jnp.promote_types(x.dtype, jnp.float32)
            decay = decay.astype(wide)
            return scan(x.astype(wide), jnp.exp(decay) if log else decay).astype(dtype)

        return run

    return Case(
        "linear_scan" + ", constant decay" * constant,
        shape,
        dtype,
        (normal(0, shape, dtype), decay),
        ours,
        by(lax_scan),
        {name: by(scan) for name, scan in OTHER_SCANS.items()},
        (2, 3) if constant else (3, 5),
        goals,
    )


def rg_lru_case(shape: tuple[int, int, int], dtype: str) -> Case:
    """`rg_lru_scan`, beside its composition of gates and a scan."""
    width = shape[-1]
    a_param = jax.random.uniform(jax.random.key(3), (width,), minval=-6.0, maxval=-3.0)

    def ours(x, r, i, a_param, implementation=None):
        return ops.rg_lru_scan(x, r, i, a_param, implementation=implementation)[0]

    def by(scan: Scan) -> Function:
        def run(x, r, i, a_param):
            x, r, i = (array.astype(jnp.float32) for array in (x, r, i))
            log_a = -8.0 * jax.nn.softplus(a_param)[None, None] * jax.nn.sigmoid(r)
            factor = jnp.sqrt(-jnp.expm1(2 * log_a))
            return scan(factor * jax.nn.sigmoid(i) * x, jnp.exp(log_a)).astype(dtype)

        return run

    return Case(
        "rg_lru_scan",
        shape,
        dtype,
        (*(normal(seed, shape, dtype) for seed in range(3)), a_param),
        ours,
        by(lax_scan),
        {"composition": by(_our_scan)}
        | {name: by(scan) for name, scan in OTHER_SCANS.items()},
        (4, 8),
        {"composition": 1.0, "associative_scan": 3.0},
    )


def hgrn_case(shape: tuple[int, int, int], dtype: str, complex_state: bool) -> Case:
    """`hgrn_scan`, beside its composition of gates and a scan."""
    width = shape[-1]
    lower_bound = jax.random.uniform(jax.random.key(3), (width,), maxval=0.9)
    theta = jax.random.uniform(jax.random.key(4), (width,), maxval=jnp.pi)
    phases = (theta,) if complex_state else ()

    def ours(x, f, lower_bound, *theta, implementation=None):
        return ops.hgrn_scan(
            x,
            f,
            lower_bound,
            theta=theta[0] if theta else None,
            implementation=implementation,
        )[0]

    def by(scan: Scan) -> Function:
        def run(x, f, lower_bound, *theta):
            wide = jnp.promote_types(x.dtype, jnp.float32)
            bound = lower_bound[None, None]
            decay = bound + (1 - bound) * jax.nn.sigmoid(f.astype(wide))
            inputs = (1 - decay) * x.astype(wide)
            if theta:
                decay = decay * jnp.exp(1j * theta[0])[None, None]
                inputs = inputs.astype(decay.dtype)
            h = scan(inputs, decay)
            return h if theta else h.astype(dtype)

        return run

    return Case(
        "hgrn_scan" + ", complex" * complex_state,
        shape,
        dtype,
        (normal(0, shape, dtype), normal(1, shape, dtype), lower_bound, *phases),
        ours,
        by(lax_scan),
        {"composition": by(_our_scan)}
        | {name: by(scan) for name, scan in OTHER_SCANS.items()},
        (4, 8) if complex_state else (3, 6),
        {"composition": 1.0, "associative_scan": 3.0},
    )


def _our_scan(x: jax.Array, a: jax.Array) -> jax.Array:
    return ops.linear_scan(x, a)[0]


def lightning_case(
    shape: tuple[int, int, int, int], dtype: str, quadratic: bool
) -> Case:
    """`lightning_attention` with a decay per head, beside the quadratic form."""
    heads = shape[2]
    log_decay = -(2.0 ** (-8 * jnp.arange(1, heads + 1) / heads))

    def ours(q, k, v, implementation=None):
        arrays = q, k, v, log_decay
        return ops.lightning_attention(*arrays, implementation=implementation)[0]

    def loop(q, k, v):
        def step(state, inputs):
            q, k, v = inputs
            state = jnp.exp(log_decay)[None, :, None, None] * state
            state = state + k[..., :, None] * v[..., None, :]
            return state, jnp.einsum("bhk,bhkv->bhv", q, state)

        def pieces(x):
            x = x.swapaxes(0, 1).astype(jnp.float32)
            return x.reshape(-1, 64, *x.shape[1:])

        first = jnp.zeros((shape[0], heads, shape[3], shape[3]))
        # In pieces, so that not every state is kept for the backward pass.
        piece = jax.checkpoint(functools.partial(lax.scan, step))
        o = lax.scan(piece, first, tuple(map(pieces, (q, k, v))))[1]
        return o.reshape(-1, *o.shape[2:]).swapaxes(0, 1).astype(dtype)

    def all_pairs(q, k, v):
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        steps = jnp.arange(shape[1])
        ago = steps[:, None] - steps[None]
        decay = jnp.exp(log_decay[:, None, None] * ago[None])
        decay = jnp.where(ago[None] >= 0, decay, 0.0)
        weights = decay[None] * jnp.einsum("bthk,bshk->bhts", q, k)
        return jnp.einsum("bhts,bshv->bthv", weights, v).astype(dtype)

    return Case(
        "lightning_attention",
        shape,
        dtype,
        tuple(normal(seed, shape, dtype) for seed in range(3)),
        ours,
        loop,
        {"quadratic": all_pairs} if quadratic else {},
        (4, 7),
        {"quadratic": 8.0} if quadratic else {},
        ("chunked", "loop", *KERNELS),
    )


def cases(platform: str) -> list[Callable[[], Case]]:
    """What is timed on a platform; arrays are made when a case is called."""
    make = functools.partial
    if platform == "cpu":
        goals = {"associative_scan": 3.5, "lax.scan": 1.5}
        one = {"associative_scan": 3.0, "lax.scan": 1.3}
        of_complex = {"associative_scan": 4.0}
        return [
            make(linear_scan_case, (8, 1024, 256), "float32", goals),
            make(linear_scan_case, (32, 256, 128), "float32", goals),
            make(linear_scan_case, (1, 16384, 512), "float32", one),
            make(linear_scan_case, (8, 1024, 256), "complex64", of_complex),
            make(linear_scan_case, (8, 1024, 256), "complex64", {}, constant=True),
            make(rg_lru_case, (8, 1024, 256), "float32"),
            make(rg_lru_case, (1, 16384, 512), "float32"),
            make(hgrn_case, (8, 1024, 256), "float32", False),
            make(hgrn_case, (8, 1024, 256), "float32", True),
            make(lightning_case, (2, 1024, 4, 64), "float32", True),
            make(lightning_case, (2, 16384, 4, 64), "float32", False),
        ]
    long, few = (32, 2048, 1024), (1, 32768, 1024)
    return [
        make(linear_scan_case, long, "float32", {}),
        make(linear_scan_case, long, "bfloat16", {}),
        make(linear_scan_case, few, "float32", {}),
        make(linear_scan_case, (64, 8192, 128), "float32", {}),
        make(linear_scan_case, (16, 2048, 1024), "complex64", {}),
        make(linear_scan_case, (16, 2048, 1024), "complex64", {}, constant=True),
        make(rg_lru_case, long, "bfloat16"),
        make(hgrn_case, long, "bfloat16", False),
        make(hgrn_case, (16, 2048, 1024), "float32", True),
        make(lightning_case, (8, 4096, 16, 128), "bfloat16", False),
        make(lightning_case, (8, 1024, 16, 128), "bfloat16", True),
    ]


def directions(function: Function) -> dict[str, Wrapped]:
    """A function alone, and with its gradient in all arguments, compiled."""

    @jax.jit
    def both(weights, *arguments):
        # The first is a temporary of XLA, as in a layer: it may be overwritten.
        first, *rest = arguments
        scale = jnp.asarray(1.0001, first.dtype)
        out, pull = jax.vjp(lambda x, *rest: function(x * scale, *rest), first, *rest)
        # As in training it hangs on the output: without that XLA:CPU runs the forward
        # and the backward pass of some of them at once, on two cores.
        return pull(weights * out)

    return {"forward": jax.jit(function), "forward and backward": both}


def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Checks and times every implementation that runs here and all beside it."""
    wanted = directions(case.truth)
    out = wanted["forward"](*case.arguments)
    weights = normal(9, out.shape, out.dtype.name)
    programs: dict[str, dict[str, Wrapped]] = {"ours": directions(case.ours)}
    for name in case.implementations:
        named = functools.partial(case.ours, implementation=name)
        try:
            jax.eval_shape(named, *case.arguments)
        except NotImplementedError:
            continue
        programs[f"ours, {name}"] = directions(named)
    programs |= {name: directions(other) for name, other in case.others.items()}

    tolerance = TOLERANCES[case.dtype]
    rows = []
    for direction, planes in zip(wanted, case.planes, strict=True):
        inputs = case.arguments
        if direction != "forward":
            inputs, planes = (weights, *inputs), sum(case.planes)
        truth = wanted[direction](*inputs)
        timed: dict[str, Callable[[], Any]] = {}
        for name, program in programs.items():
            check_close(
                f"{case.op}, {name}", program[direction](*inputs), truth, tolerance
            )
            timed[name] = functools.partial(program[direction], *inputs)
        x, y = case.arguments[0], normal(10, case.shape, case.dtype)
        timed["stream"] = functools.partial(jax.jit(jnp.multiply), x, y)
        seconds = interleaved(timed, repeats)
        stream = 3 * x.nbytes / seconds.pop("stream")
        peak = PEAK.get(jax.devices()[0].device_kind)
        rows.append(
            {
                "op": case.op,
                "shape": case.shape,
                "dtype": case.dtype,
                "direction": direction,
                "seconds": seconds,
                "bytes": planes * x.nbytes,
                "of_stream": planes * x.nbytes / seconds["ours"] / stream,
                "of_peak": peak and planes * x.nbytes / seconds["ours"] / peak,
            }
        )
    return rows


def format_row(row: Mapping[str, Any], goals: Mapping[str, float]) -> list[str]:
    """One line of the table."""
    ours = row["seconds"]["ours"]
    named = {
        name.removeprefix("ours, "): seconds
        for name, seconds in row["seconds"].items()
        if name.startswith("ours, ")
    }
    others = {
        name: seconds / ours
        for name, seconds in row["seconds"].items()
        if not name.startswith("ours")
    }
    wanted = goals if row["direction"] != "forward" else {}
    beside = ", ".join(
        f"{name} {at_least(ratio, wanted[name]) if name in wanted else f'{ratio:.1f}x'}"
        for name, ratio in others.items()
    )
    peak = f" ({row['of_peak']:.0%} of peak)" if row["of_peak"] else ""
    return [
        f"{row['op']} {tuple(row['shape'])} {row['dtype']}",
        row["direction"],
        f"{1e3 * ours:.3g}",
        f"{row['bytes'] / ours / 1e9:.0f}{peak}",
        f"{row['of_stream']:.0%}",
        min(named, key=named.__getitem__),
        beside,
    ]


def run(out: Path, repeats: int = 9) -> str:
    """Measures all cases of this platform, writes them as JSON, returns the table."""
    platform = jax.default_backend()
    measured, lines = [], []
    for make in cases(platform):
        case = make()
        rows = measure(case, repeats)
        measured += rows
        lines += [format_row(r, case.goals if platform == "cpu" else {}) for r in rows]
    path = out / f"ops-{platform}.json"
    path.write_text(json.dumps(measured, indent=1) + "\n")
    header = [
        "op",
        "direction",
        "ms",
        "GB/s",
        "of stream",
        "fastest",
        "over the others",
    ]
    return (
        "`implementation=None`; the gradients are those of every array. *GB/s*: the "
        "bytes that must be touched\nat least, each once, over the time. *Of stream*: "
        "that rate beside the one of an elementwise product\nof two arrays of that "
        "size, in the same run. *Fastest*: of the named implementations. *Over the\n"
        "others*: how many times faster. All times are in the JSON file beside this "
        "one.\n\n" + table(header, lines)
    )
