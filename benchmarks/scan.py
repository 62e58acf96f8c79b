"""linear_scan, forward and backward, beside the two recurrences that JAX offers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.stages import Wrapped

from benchmarks.harness import at_least, check_close, interleaved, table
from ssm import ops

# (B, T, D), dtype, goal over associative_scan, goal over lax.scan.
CASES = [
    ((8, 1024, 256), "float32", 3.5, 1.5),
    ((32, 256, 128), "float32", 3.5, 1.5),
    ((1, 16384, 512), "float32", 3.0, 1.3),
    ((8, 1024, 256), "complex64", 4.0, None),
]
# The decays stay under 0.999, so a rounding error is amplified by at most 1000 * 6e-8.
TOLERANCE = 1e-4

Scan = Callable[[jax.Array, jax.Array], jax.Array]


def linear_scan(x: jax.Array, a: jax.Array) -> jax.Array:
    """Ours."""
    return ops.linear_scan(x, a)[0]


def associative_scan(x: jax.Array, a: jax.Array) -> jax.Array:
    """The parallel prefix."""

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(combine, (a, x), axis=1)[1]


def lax_scan(x: jax.Array, a: jax.Array) -> jax.Array:
    """The sequential loop over a time-major copy."""

    def step(h, inputs):
        x_t, a_t = inputs
        h = a_t * h + x_t
        return h, h

    time_major = x.swapaxes(0, 1), a.swapaxes(0, 1)
    return jax.lax.scan(step, jnp.zeros_like(x[:, 0]), time_major)[1].swapaxes(0, 1)


def gradient(scan: Scan) -> Wrapped:
    """Compile the forward and backward pass of a scan."""

    @jax.jit
    def run(x, a, cotangent):
        # The scan's input is a temporary of XLA, as in a layer: it may be overwritten.
        return jax.vjp(lambda x, a: scan(x * 1.0001, a), x, a)[1](cotangent)

    return run


@jax.jit
def forward_traffic(x: jax.Array, a: jax.Array) -> jax.Array:
    """Touch the three arrays that a forward pass must touch."""
    return a * x


@jax.jit
def backward_traffic(
    h: jax.Array, a: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Touch the five arrays that a backward pass must touch."""
    return cotangent * a, cotangent * h


def case(
    shape: tuple[int, int, int],
    dtype: str,
    over_associative: float,
    over_lax_scan: float | None,
    repeats: int = 9,
) -> list[str]:
    """Check and time one shape; return its row of the table."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, cotangent = (jax.random.normal(key, shape, dtype) for key in keys[:2])
    a = jnp.clip(jax.nn.sigmoid(jax.random.normal(keys[2], shape) + 2), max=0.999)
    if dtype == "complex64":
        a = a * jnp.exp(1j * jax.random.uniform(keys[3], shape, maxval=jnp.pi))

    scans = {
        "linear_scan": gradient(linear_scan),
        "associative_scan": gradient(associative_scan),
        "lax.scan": gradient(lax_scan),
    }
    wanted = scans["lax.scan"](x, a, cotangent)
    for name, scan in scans.items():
        check_close(name, scan(x, a, cotangent), wanted, TOLERANCE)

    def traffic():
        return forward_traffic(x, a), backward_traffic(x, a, cotangent)

    timed = {name: lambda f=f: f(x, a, cotangent) for name, f in scans.items()}
    seconds = interleaved(timed | {"traffic": traffic}, repeats)
    ours = seconds["linear_scan"]
    memory = scans["linear_scan"].lower(x, a, cotangent).compile().memory_analysis()
    assert memory is not None
    sequential_ratio = seconds["lax.scan"] / ours
    return [
        f"{shape} {dtype}",
        *(f"{1e3 * s:.2f}" for s in seconds.values()),
        at_least(seconds["associative_scan"] / ours, over_associative),
        at_least(sequential_ratio, over_lax_scan)
        if over_lax_scan
        else f"{sequential_ratio:.1f}x",
        f"{ours / seconds['traffic']:.1f}x",
        f"{memory.temp_size_in_bytes / x.nbytes:.1f}",
    ]


def run() -> str:
    """Return the table."""
    header = ["(B, T, D)", "linear_scan ms", "associative_scan ms", "lax.scan ms"]
    header += ["traffic ms", "over associative_scan", "over lax.scan"]
    header += ["of traffic", "temporaries / B T D"]
    return (
        "Forward and backward of `h_t = a_t h_{t-1} + x_t`, gradients in x and a; the "
        "others differentiated\nby JAX. *Traffic*: elementwise products that touch the "
        "same 3 + 5 arrays once. *Temporaries*: what the\ncompiled program allocates "
        "beside its inputs and outputs; the scan's own input and h are 2.\n\n"
        + table(header, [case(*arguments) for arguments in CASES])
    )
