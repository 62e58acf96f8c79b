"""What the released code of Liquid-S4 computes, which is not the model of its paper."""

import itertools
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssm.layers.base import Carry, SequenceLayer, refuse_carry
from ssm.layers.discretization import bilinear
from ssm.layers.modes import check_choice
from ssm.layers.s4 import S4
from ssm.layers.s4d import S4D

Kernel = Literal["pb", "kb"]
Contraction = Literal["none", "tanh", "lecun"]
CONTRACTIONS: dict[Contraction, Callable[[jax.Array], jax.Array]] = {
    "none": lambda v: v,
    "tanh": jnp.tanh,
    "lecun": lambda v: 1.7159 * jnp.tanh(0.666 * v),
}


class Constant(nnx.Variable):
    """What is kept with a model, in checkpoints too, and not trained."""


class LiquidS4Released(SequenceLayer):
    """A linear layer plus fixed multiples of products of its last inputs, reversed.

        y = linear(u) + sum_{q=2}^P g_q * r^(q)                                  "pb"
        y = linear(u) + sum_{q=2}^P irfft(rfft(r^(q), 2 T) fft(s^(q-1) K, T + 1))  "kb"
        g_q = c_1 s^(2^(q-1) - 1),    r^(q)_t = contract(v^(q)_{T-1-t})
        s = 2 Re sum_n bbar_n,    c_1 = 2 Re sum_n c_n bbar_n,
        bbar = dt b / (1 - dt lambda / 2)

    With `all_combinations` v^(q) has a product of q inputs for each step: of all
    choices of q of the last m positions, m the least that has T choices, the last T in
    lexicographic order. Without, v^(2)_t = u_t u_{t-1} and then v^(q)_t = v^(q-1)_t
    v^(q-1)_{t-1}.

    This is to compare with checkpoints and figures of that code, and for nothing else.
    It differs from the paper's model, which is `LiquidS4`, in that s and c_1 are of the
    first values of the parameters and not trained (there they are outside the
    checkpoint too; here they are a `Constant`, so a reloaded model is the same). It
    looks at the end of the sequence, at about sqrt(2 T) of its steps, and reads them in
    reverse: it is not causal. "kb" is no convolution, as it multiplies spectra of two
    lengths.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model). It is not causal: returns no
    carry. With `mask` (B, T) bool inputs beyond the end of padded sequences are zeros,
    as there, and so are their products: one that ends early is without the term.

    Args:
      linear: an `S4`, as published, or an `S4D`, in one direction or both.
      liquid: "pb" or "kb".
      degree: P, the most that a product has of inputs, or 2^(P-1) without
        `all_combinations`.
      all_combinations: see above.
      contract: "none", "tanh", or "lecun", 1.7159 tanh(0.666 v).

    Raises ValueError if a carry or a `reset` is given, for unknown names, and where T
    positions do not have T choices.

    Source: the code of Hasani et al. 2023, Liquid-S4 (2209.12951).
    """

    causal = False
    per_layer = ("mask",)

    def __init__(
        self,
        linear: S4 | S4D,
        *,
        liquid: Kernel = "pb",
        degree: int = 2,
        all_combinations: bool = True,
        contract: Contraction = "none",
    ):
        check_choice(self, "liquid", liquid, get_args(Kernel))
        check_choice(self, "contract", contract, CONTRACTIONS)
        if degree < 2:
            raise ValueError(f"LiquidS4Released: degree={degree}, wanted at least 2")
        self.linear, self.liquid, self.degree = linear, liquid, degree
        self.all_combinations, self.contract = all_combinations, contract
        b = _input_map(linear)
        self.s = Constant(2 * jnp.sum(jnp.real(b), axis=-1))
        directions = (False,) if linear.causal else (False, True)
        c = jnp.stack([linear.output_map(backward=back) for back in directions])
        self.c_1 = Constant(2 * jnp.sum(jnp.real(c * b[None]), axis=-1))

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        if carry is not None:
            raise refuse_carry(self)
        if reset is not None and mask is None:
            raise ValueError(
                "LiquidS4Released reads the end of a whole sequence: documents cannot "
                "be packed"
            )
        y, _ = self.linear(x, mask=mask)
        u = x.astype(self.s.dtype)
        u = u if mask is None else jnp.where(mask[..., None], u, 0)
        term = self._pb(u) if self.liquid == "pb" else self._kb(u)
        return y + term.astype(y.dtype), None

    def _products(self, u):
        """v^(2), ..., v^(P), each (B, T, d_model)."""
        contract = CONTRACTIONS[self.contract]
        for q in range(2, self.degree + 1):
            if self.all_combinations:
                yield contract(_combined(u, q))
                continue
            before = jnp.pad(u[:, :-1], ((0, 0), (1, 0), (0, 0)))
            u = u * before
            yield contract(u)

    def _pb(self, u):
        s, c_1 = self.s[...], self.c_1[...]
        y = jnp.zeros_like(u)
        for q, v in enumerate(self._products(u), start=2):
            weights = c_1 * s[None] ** (2 ** (q - 1) - 1)
            y = y + weights[0][None, None] * jnp.flip(v, axis=1)
            if not self.linear.causal:
                y = y + weights[1][None, None] * v
        return y

    def _kb(self, u):
        time = u.shape[1]
        kernel = self.linear.kernel(time)
        if not self.linear.causal:  # the first T + 1 of 2 T samples: one is of K2
            kernel = jnp.concatenate([kernel[0], kernel[1, :, -1:]], axis=-1)
        y = jnp.zeros_like(u)
        for q, v in enumerate(self._products(u), start=2):
            scaled = self.s[...][:, None] ** (q - 1) * kernel
            spectrum = jnp.fft.fft(scaled, time + 1, axis=-1).T[None]
            reversed_v = jnp.fft.rfft(jnp.flip(v, axis=1), 2 * time, axis=1)
            y = y + jnp.fft.irfft(reversed_v * spectrum, 2 * time, axis=1)[:, :time]
        return y

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        raise refuse_carry(self)


def _input_map(linear):
    """bbar, (d_model, N / 2) complex, of the diagonal part alone."""
    if isinstance(linear, S4):
        eigenvalues, _, b, dt = linear.system()
        dt = dt[:, None]
    else:
        eigenvalues, b, dt = linear.continuous()
    return bilinear(eigenvalues, dt)[1] * b


def _combined(u, q):
    """Products of q of the last inputs, (B, T, D), as many as there are steps."""
    time = u.shape[1]
    window = next(m for m in itertools.count(2) if math.comb(m, q) >= time)
    if window > time:
        raise ValueError(
            f"LiquidS4Released: {time} steps have fewer than {time} choices of {q} "
            "positions: longer sequences or a lower degree, or all_combinations=False"
        )
    choices = itertools.combinations(range(time - window, time), q)
    places = np.array(list(choices)[-time:])
    return jnp.prod(u[:, places], axis=2)
