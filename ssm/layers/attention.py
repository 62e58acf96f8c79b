"""Multi-head attention over whole documents, and what its windowed form shares."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.layers import attend
from ssm.layers.base import (
    Carry,
    SequenceLayer,
    check_carry,
    check_input,
    recurrence_dtype,
    refuse_carry,
)
from ssm.layers.gated_mlp import normal
from ssm.layers.rope import rotate
from ssm.ops.checks import check_reset

Positional = Literal["rope", "none"]


class Attention(SequenceLayer):
    """Multi-head attention, causal or not, that never leaves a document.

        y_t = out(concat_n sum_s softmax_s(q_tn . k_sn / sqrt(H)) v_sn)
        q, k, v = query(x), key(x), value(x);    s from the start of t's document to t

    or to the document's end with `causal=False`. With "rope" q and k are turned by
    their place in the document, which starts at 0. Groups of n_heads / n_kv_heads
    neighbouring heads share their keys and values.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model). The carry is a dict of the keys
    and values so far: "keys" (after the turn) and "values" (B, max_length, n_kv_heads,
    head_dim) in `dtype`, and "length" (B,) int32, how many steps the document has. Each
    is at its place in the document; a reset empties it.

    No document may become longer than the `max_length` given to `init_carry`. Where the
    lengths are known, that is an error; under `jit`, where they are not, outputs beyond
    are NaN. Without a carry there is room for the sequence and no more.

    Parameters: query, key, value: kernel (d_model, heads * head_dim), normal of
    variance 1 / d_model, bias if qkv_bias; out: kernel (n_heads * head_dim, d_model),
    normal of variance `out_variance` / (n_heads * head_dim), bias if out_bias.

    Args:
      d_model: width of the inputs and outputs.
      n_heads: number of query heads.
      n_kv_heads: number of heads of keys and values, a divisor; None is n_heads.
      head_dim: H; None is d_model / n_heads.
      causal: see above. If not, the layer takes no carry.
      positional: "rope" or "none".
      rope_fraction, rope_theta: see `ssm.layers.rope.rotate`.
      qkv_bias, out_bias, out_variance: see above.
      dtype: of products, activations and carry; None takes that of the inputs and
        parameters. The softmax is in float32 at least.
      param_dtype: of the parameters.
      implementation: of `jax.nn.dot_product_attention`: "xla", "cudnn" or None.

    Raises:
      ValueError: x has another width; a size divides badly; `init_carry` gets no
        max_length; a document becomes longer than it; a carry is given to a layer that
        is not causal.

    Source: Vaswani et al. 2017 (1706.03762); shared keys and values, Shazeer 2019
    (1911.02150) and Ainslie et al. 2023 (2305.13245); documents, Zhao et al. 2024
    (2402.13991).
    """

    window: int | None = None

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = True,
        positional: Positional = "rope",
        rope_fraction: float = 1.0,
        rope_theta: float = 10_000.0,
        qkv_bias: bool = False,
        out_bias: bool = False,
        out_variance: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: attend.Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if head_dim is None:
            if d_model % n_heads:
                raise ValueError(
                    f"{name}: n_heads={n_heads} does not divide d_model={d_model}; "
                    "wanted a divisor, or a head_dim"
                )
            head_dim = d_model // n_heads
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(
                f"{name}: n_kv_heads={n_kv_heads}, wanted a divisor of "
                f"n_heads={n_heads}"
            )
        if positional not in ("rope", "none"):
            raise ValueError(
                f"{name}: positional={positional!r} is unknown, wanted 'rope' or 'none'"
            )
        self.d_model, self.n_heads, self.n_kv_heads = d_model, n_heads, n_kv_heads
        self.head_dim, self.causal, self.positional = head_dim, causal, positional
        self.rope_fraction, self.rope_theta = rope_fraction, rope_theta
        self.dtype, self.param_dtype = dtype, param_dtype
        self.implementation = implementation

        def linear(d_in, d_out, variance, bias):
            types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
            init = normal(variance)
            return nnx.Linear(
                d_in, d_out, use_bias=bias, kernel_init=init, rngs=rngs, **types
            )

        self.query = linear(d_model, n_heads * head_dim, 1.0, qkv_bias)
        self.key = linear(d_model, n_kv_heads * head_dim, 1.0, qkv_bias)
        self.value = linear(d_model, n_kv_heads * head_dim, 1.0, qkv_bias)
        self.out = linear(n_heads * head_dim, d_model, out_variance, out_bias)

    def __call__(
        self, x: jax.Array, carry: Carry = None, *, reset: jax.Array | None = None
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        batch, time, _ = x.shape
        if reset is not None:
            check_reset(reset, batch, time)
        if not self.causal and carry is not None:
            raise refuse_carry(self)
        check_carry(self, carry, batch, max_length=_room(carry))
        if time == 0:
            return x, self.init_carry(batch, max_length=1) if carry is None else carry
        length = None if carry is None else carry["length"]
        start = attend.document_starts(reset, length, time)
        place = jnp.arange(time, dtype=jnp.int32)[None] - start
        q = self._turn(self._heads(self.query(x)), place)
        k = self._turn(self._heads(self.key(x)), place)
        v = self._heads(self.value(x))
        if not self.causal:
            mask = None if reset is None else start[:, :, None] == start[:, None]
            return self._out(self._dot_product(q, k, v, mask)), None
        if carry is None:
            y = self._attend_alone(q, k, v, start, reset is not None)
            carry = self.init_carry(batch, max_length=time)
        elif time == 1:
            return self._attend_one(q, k, v, carry, reset)
        else:
            y = self._attend_on(q, k, v, start, carry)
            y = self._refuse_overflow(y, place, carry)
        last = jnp.broadcast_to(start[:, -1], (batch,))
        carry = {
            "keys": attend.into_ring(carry["keys"], k, last),
            "values": attend.into_ring(carry["values"], v, last),
            "length": time - last,
        }
        return self._out(y), carry

    def _attend_alone(self, q, k, v, start, packed):
        """A whole sequence: nothing before it."""
        time = q.shape[1]
        if not packed and (self.window is None or time <= self.window):
            return self._dot_product(q, k, v, is_causal=True)
        earliest = self._earliest(start)
        if block := self._block(time):
            before = jnp.zeros((k.shape[0], block, *k.shape[2:]), k.dtype)
            k, v = (jnp.concatenate([before, new], axis=1) for new in (k, v))
            return self._in_blocks(q, k, v, earliest, block)
        steps = jnp.arange(time, dtype=jnp.int32)[None]
        return self._dot_product(q, k, v, attend.seen(steps, steps, earliest))

    def _attend_on(self, q, k, v, start, carry):
        """A chunk of a sequence, after what the carry holds."""
        time, length = q.shape[1], carry["length"]
        keys, values = carry["keys"].astype(k.dtype), carry["values"].astype(v.dtype)
        earliest = self._earliest(start)
        if block := self._block(time):
            keys = attend.from_ring(keys, length, block)
            values = attend.from_ring(values, length, block)
        k = jnp.concatenate([keys, k], axis=1)
        v = jnp.concatenate([values, v], axis=1)
        if block:
            return self._in_blocks(q, k, v, earliest, block)
        steps = jnp.arange(time, dtype=jnp.int32)[None]
        before = attend.slot_times(length, keys.shape[1])
        own = jnp.broadcast_to(steps, (before.shape[0], time))
        at_key = jnp.concatenate([before, own], axis=1)
        return self._dot_product(q, k, v, attend.seen(steps, at_key, earliest))

    def _attend_one(self, q, k, v, carry, reset):
        """One step: its key goes into the ring, which is then all that it sees."""
        keys, values, length = carry["keys"], carry["values"], carry["length"]
        size = keys.shape[1]
        if reset is not None:
            length = jnp.where(reset[:, 0], 0, length)
            starts = reset[:, :, None, None]
            keys = jnp.where(starts, jnp.zeros((), keys.dtype), keys)
            values = jnp.where(starts, jnp.zeros((), values.dtype), values)
        slot = jnp.arange(length.shape[0]), length % size
        keys = keys.at[slot].set(k[:, 0].astype(keys.dtype))
        values = values.at[slot].set(v[:, 0].astype(values.dtype))
        filled = attend.slot_times(length + 1, size) >= -1 - length[:, None]
        y = self._dot_product(
            q, keys.astype(k.dtype), values.astype(v.dtype), filled[:, None]
        )
        y = self._refuse_overflow(y, length[:, None], carry)
        return self._out(y), {"keys": keys, "values": values, "length": length + 1}

    def _refuse_overflow(self, y, place, carry):
        """Where a document has outgrown the carry: an error, or NaN under `jit`."""
        size = carry["keys"].shape[1]
        if self.window is not None:
            return y
        too_long = place >= size
        if not isinstance(too_long, jax.core.Tracer) and too_long.any():
            raise ValueError(
                f"{type(self).__name__}: a document has {int(place.max()) + 1} steps, "
                f"and its carry room for {size}: give init_carry a larger max_length, "
                "or a carry at all if there was none"
            )
        return jnp.where(too_long[..., None, None], jnp.nan, y)

    def _earliest(self, start):
        if self.window is None:
            return start
        oldest = jnp.arange(start.shape[1], dtype=jnp.int32)[None] - self.window + 1
        return jnp.maximum(start, oldest)

    def _block(self, time):
        """The length of the blocks that a long sequence is cut into, or 0."""
        if self.window is None:
            return 0
        block = max(self.window - 1, _SMALLEST_BLOCK)
        return block if time > 2 * block else 0

    def _in_blocks(self, q, k, v, earliest, block):
        return attend.attend_in_blocks(
            q, k, v, earliest, block=block, implementation=self.implementation
        )

    def _dot_product(self, q, k, v, mask=None, is_causal=False):
        return attend.dot_product(
            q, k, v, mask, is_causal=is_causal, implementation=self.implementation
        )

    def _heads(self, x):
        return x.reshape(*x.shape[:2], -1, self.head_dim)

    def _turn(self, x, place):
        if self.positional == "none":
            return x
        return rotate(x, place, fraction=self.rope_fraction, theta=self.rope_theta)

    def _out(self, y):
        return self.out(y.reshape(*y.shape[:2], -1))

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        if not self.causal:
            raise refuse_carry(self)
        size = self.window or max_length
        if size is None:
            raise ValueError(
                f"{type(self).__name__} keeps every step of a document: wanted "
                "init_carry(batch_size, max_length=...), the most steps that one has"
            )
        dtype = self.dtype or recurrence_dtype(self.param_dtype)
        shape = (batch_size, size, self.n_kv_heads, self.head_dim)
        return {
            "keys": jnp.zeros(shape, dtype),
            "values": jnp.zeros(shape, dtype),
            "length": jnp.zeros((batch_size,), jnp.int32),
        }


def _room(carry):
    """How many steps a carry has room for; a carry of another layer has any number."""
    keys = carry.get("keys") if isinstance(carry, dict) else None
    return 1 if keys is None else keys.shape[1]


_SMALLEST_BLOCK = 128
"""Blocks of a narrower window would be too small to multiply well."""
