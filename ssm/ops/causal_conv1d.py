"""A short causal convolution over time, one filter per channel."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ssm.ops.checks import (
    accumulation_dtype,
    check_inexact,
    check_reset,
    check_shape,
    is_complex,
)


def causal_conv1d(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    carry: jax.Array | None = None,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Convolves every channel with a short filter of its own, looking back in time.

        y_t = b + sum_{s=0}^{W-1} w_{W-1-s} * x_{t-s}            (elementwise)

    Inputs from before the first step are those of `carry`, and zero for None. Inputs
    from before a reset count as zero, in y and in the carry that comes out.

    Args:
      x: (B, T, D), real or complex floating. T may be 0, or less than W.
      w: (W, D), the filters; the last row multiplies x_t.
      b: (D,), added to every step.
      carry: (B, W - 1, D), the last inputs before x, oldest first.
      reset: (B, T) bool. True starts anew at x_t.

    Returns:
      y (B, T, D) in the dtype of x, and the carry (B, W - 1, D) after the last step, in
      the dtype of the carry given, or else of x. Sums are in float32, or wider if x is.

    Differentiable in x, w, b and carry any number of times, in both modes. The backward
    pass keeps the arguments and nothing else. Plain XLA operations: under a mesh XLA
    partitions them, and exchanges W - 1 steps where time is sharded.

    Raises ValueError if an argument has a wrong shape or dtype.

    Source: the convolution of S4-like blocks with gates, as in Griffin (2402.19427),
    section 2.3, and Mamba (2312.00752).
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    check_inexact("x", x)
    check_inexact("w", w)
    if x.ndim != 3:
        raise ValueError(f"x has shape {x.shape}, wanted three axes = (B, T, D)")
    batch, time, width = x.shape
    if w.ndim != 2 or w.shape[1] != width or w.shape[0] == 0:
        raise ValueError(f"w has shape {w.shape}, wanted (W, {width}) = (W, D), W >= 1")
    before = w.shape[0] - 1
    if b is not None:
        b = jnp.asarray(b)
        check_inexact("b", b)
        check_shape("b", b, (width,), meaning="(D,)")
    if carry is not None:
        carry = jnp.asarray(carry)
        check_inexact("carry", carry)
        check_shape("carry", carry, (batch, before, width), meaning="(B, W - 1, D)")
    for name, array in (("w", w), ("b", b), ("carry", carry)):
        if array is not None and is_complex(array) and not is_complex(x):
            raise ValueError(
                f"{name} is {array.dtype} while x is {x.dtype}: wanted both real, "
                "or x made complex first"
            )
    if reset is not None:
        reset = jnp.asarray(reset)
        check_reset(reset, batch, time)
    if time == 0:
        return x, jnp.zeros((batch, before, width), x.dtype) if carry is None else carry
    return _convolve(x, w, b, carry, reset), _carry_on(x, before, carry, reset)


# What is shifted and masked is made again for the gradient of w, not kept W times.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _convolve(x, w, b, carry, reset):
    dtype = accumulation_dtype(x.dtype)
    w, time = w.astype(dtype), x.shape[1]
    seen = _seen(reset, w.shape[0] - 1)
    y = jnp.zeros((), dtype) if b is None else b.astype(dtype)[None, None]
    for s in range(w.shape[0]):
        y = y + w[-1 - s][None, None] * _mask(_shift(x.astype(dtype), s), seen[s])
    if carry is not None:
        # Only the first W - 1 steps look back so far. They are a sum of their own: x
        # behind the carry in one array would be a copy of x.
        before = carry.shape[1]
        head = min(before, time)
        past = jnp.pad(carry.astype(dtype), ((0, 0), (0, head), (0, 0)))
        extra = jnp.zeros((), dtype)
        for s in range(1, before + 1):
            of_step = past[:, before - s : before - s + head]
            mask = None if seen[s] is None else seen[s][:, :head]
            extra = extra + w[-1 - s][None, None] * _mask(of_step, mask)
        if before:
            y = y + jnp.pad(extra, ((0, 0), (0, time - head), (0, 0)))
    return y.astype(x.dtype)


def _carry_on(x, before, carry, reset):
    """The last inputs, zero where a reset came after them."""
    dtype = x.dtype if carry is None else carry.dtype
    if carry is None:
        carry = jnp.zeros((x.shape[0], before, x.shape[2]), dtype)
    last = x[:, max(0, x.shape[1] - before) :].astype(dtype)
    if before == 0:
        return carry
    last = jnp.concatenate([carry[:, last.shape[1] :], last], axis=1)
    if reset is None:
        return last
    # Entry k of the last inputs is dropped if any later one starts a document.
    recent = reset[:, max(0, reset.shape[1] - before + 1) :]
    recent = jnp.pad(recent, ((0, 0), (before - recent.shape[1], 0)))
    later = jnp.pad(recent[:, 1:], ((0, 0), (0, 1)))
    dropped = lax.cummax(later.astype(jnp.int8), axis=1, reverse=True) > 0
    return jnp.where(dropped[..., None], jnp.zeros((), dtype), last)


def _shift(x, steps):
    """Moves (B, T, ...) by so many steps to later times; zeros come in."""
    if steps == 0:
        return x
    rest = [(0, 0, 0)] * (x.ndim - 2)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (steps, -steps, 0), *rest])


def _seen(reset, before):
    """For s = 0 ... W - 1 whether step t sees t - s, (B, T); None where all do."""
    if reset is None:
        return [None] * (before + 1)
    seen, hidden = [None], jnp.zeros_like(reset)
    for s in range(before):
        hidden = hidden | _shift(reset, s)
        seen.append(~hidden)
    return seen


def _mask(x, seen):
    return x if seen is None else jnp.where(seen[..., None], x, jnp.zeros((), x.dtype))
