"""Sliding-window attention."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.layers import attend
from ssm.layers.attention import Attention, Positional


class LocalAttention(Attention):
    """Multi-head attention over the last steps only, that never leaves a document.

        y_t = out(concat_n sum_s softmax_s(q_tn . k_sn / sqrt(H)) v_sn)
        q, k, v = query(x), key(x), value(x);    t - window < s <= t,  s in t's document

    `window` counts the keys that a query sees, its own included. Published code differs
    by one: DeepMind's `window_size` W lets it see W + 1 keys, that is `window=W + 1`
    here; the `attention_window_size` of transformers is `window`.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model). The carry is a dict of fixed
    size whatever was read: "keys" (after the turn by "rope") and "values" (B, window,
    n_kv_heads, head_dim) in `dtype`, rings in which a step is at its place in the
    document modulo `window`; and "length" (B,) int32, how many steps the document has.
    A reset empties it.

    A sequence much longer than the window is cut into blocks of it, so time and memory
    are linear in T.

    Parameters and other arguments are those of `Attention`. The defaults are Griffin's:
    one head of keys and values, half of each head turned, a bias on the output.

    Raises ValueError if x has another width, a size divides badly, or window < 1.

    Source: Beltagy et al. 2020 (2004.05150); in this form De et al. 2024, Griffin
    (2402.19427), section 2.3.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        window: int,
        n_kv_heads: int = 1,
        head_dim: int | None = None,
        positional: Positional = "rope",
        rope_fraction: float = 0.5,
        rope_theta: float = 10_000.0,
        qkv_bias: bool = False,
        out_bias: bool = True,
        out_variance: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: attend.Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        if window < 1:
            raise ValueError(f"LocalAttention: window={window}, wanted at least 1")
        super().__init__(
            d_model,
            n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            positional=positional,
            rope_fraction=rope_fraction,
            rope_theta=rope_theta,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            out_variance=out_variance,
            dtype=dtype,
            param_dtype=param_dtype,
            implementation=implementation,
            rngs=rngs,
        )
        self.window = window
