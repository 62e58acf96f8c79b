"""Liquid-S4: a diagonal state space whose decay depends on the input."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm import ops
from ssm.initializers import DiagonalKind
from ssm.layers.base import Carry, strictly_ahead
from ssm.layers.channel_states import in_chunks, scan_states
from ssm.layers.consecutive_products import consecutive_products
from ssm.layers.discretization import Discretization
from ssm.layers.modes import Mode, check_choice
from ssm.layers.s4d import S4D
from ssm.layers.vandermonde import exponential_sum, weighted_states

Liquid = Literal["none", "exact", "order", "kb", "pb"]
Bound = Literal["none", "tanh", "safe"]


class LiquidS4(S4D):
    """A state space for each channel to whose decay the input is added.

        h_t = (a + b u_t) * h_{t-1} + b u_t        y_t = 2 Re sum_n c_n h_{t,n} + D u_t

    with a, b and c of `S4D`. Unrolled, h is a sum over all products of distinct inputs,

        h_t = sum_p b^p sum_{i_1 < ... < i_p <= t} a^(t-i_1+1-p) u_{i_1} ... u_{i_p}

    of which `liquid` says what is computed:

      "exact"   all of it, by the recurrence above.
      "order"   products of at most P = `order` inputs, by P recurrences, each driven by
                the one before, h^(p)_t = a h^(p)_{t-1} + b u_t h^(p-1)_{t-1}, and
                h^(0) = 1.
      "kb"      of those products that of one input, and those of p <= P consecutive
                ones v^(p)_t = u_t u_{t-1} ... u_{t-p+1}: the paper's KB kernels,
                y += sum_p kappa^(p) * v^(p), kappa^(p)_l = 2 Re sum_n c_n b_n^p a_n^l.
      "pb"      as "kb" without decay between the products, the paper's PB kernels:
                y += sum_p kappa^(p)_0 (v^(p)_t + ... + v^(p)_{t-W+1}), W = `window`.
      "none"    the first order alone, which is `S4D`.

    All look back only, and are trained. "B u added element-wise to A" is read as its
    diagonal here, which is what the powers of b in the paper's kernels mean; the
    model is on a diagonal A, since for a full one it would depend on the phases of
    eigenvectors. What the released code computes is another model, see
    `LiquidS4Released`.

    |a + b u_t| may be larger than one: a real state with u = 1 at each step explodes.
    `bound` says what of u_t multiplies states in "exact" and "order", v_t:

      "safe"    b v_t = (1 - |a|) b / |b| tanh(u_t), so that |a + b v_t| <= 1, and the
                states stay bounded for bounded inputs, however long.
      "tanh"    v_t = tanh(u_t).
      "none"    v_t = u_t, as in the paper. It is stable for white noise of variance one
                and dt < 1. When states overflow, a call outside of jit raises
                FloatingPointError.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model). The carry is that of `S4D` for
    "none" and "exact", P of them (B, P, d_model, N / 2) for "order", and else a dict of
    the states and of the inputs and products that are still wanted.

    With `bidirectional=True` the same runs over what follows each step, in reverse,
    with an output map C2 of its own.

    Args:
      liquid, order, window, bound: see above. A window of None reaches back to the
        start.
      Others are those of `S4D`. `mode` is "recurrent" or None for "exact" and "order",
        which are no convolutions. Irregular times (`dt` in the call) are for "none" and
        "exact".

    Raises ValueError as `S4D` does, and for an order below 2.

    Source: Hasani et al. 2023, Liquid-S4 (2209.12951), sections 3.1 to 3.3.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        liquid: Liquid = "exact",
        order: int = 2,
        window: int | None = 1,
        bound: Bound = "safe",
        init: DiagonalKind = "lin",
        discretization: Discretization = "zoh",
        n_ssm: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bidirectional: bool = False,
        rate: float = 1.0,
        mode: Mode | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        check_choice(self, "liquid", liquid, get_args(Liquid))
        check_choice(self, "bound", bound, get_args(Bound))
        if order < 2:
            raise ValueError(f"LiquidS4: order={order}, wanted at least 2")
        if window is not None and window < 1:
            raise ValueError(f"LiquidS4: window={window}, wanted at least 1, or None")
        super().__init__(
            d_model,
            d_state,
            init=init,
            discretization=discretization,
            n_ssm=n_ssm,
            dt_min=dt_min,
            dt_max=dt_max,
            bidirectional=bidirectional,
            rate=rate,
            mode=mode,
            dtype=dtype,
            param_dtype=param_dtype,
            implementation=implementation,
            rngs=rngs,
        )
        if mode == "convolution" and liquid in ("exact", "order"):
            raise ValueError(
                f"LiquidS4: liquid={liquid!r} is no convolution: leave mode=None"
            )
        self.liquid, self.order, self.window, self.bound = liquid, order, window, bound

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        mask: jax.Array | None = None,
        dt: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        if dt is not None and self.liquid not in ("none", "exact"):
            raise ValueError(
                f"LiquidS4: dt is for liquid='exact' or 'none', not {self.liquid!r}"
            )
        y, carry = self._apply(x, carry, reset, mask, dt)
        if self.liquid == "exact" and self.bound == "none":
            _refuse_overflow(y)
        return y, carry

    def _convolves(self, time, steps_differ):
        if self.liquid in ("exact", "order"):
            return False
        return super()._convolves(time, steps_differ)

    def _convolve(self, u, carry):
        if self.liquid == "none":
            return super()._convolve(u, carry)
        start = self._start(u.shape[0])
        given = start if carry is None else carry
        y, h = super()._convolve(u, None if carry is None else carry["states"])
        liquid, added, kept = self._convolve_products(u, given)
        if self.causal:
            return y + liquid, {"states": h + added} | kept

        def run(u, _):
            return self._convolve_products(u, start, backward=True)[0]

        return y + liquid + strictly_ahead(run, u, None), None

    def _convolve_products(self, u, carry, *, backward=False):
        """The liquid term, what it adds to the last states, and the rest of a carry."""
        products, inputs = consecutive_products(u, carry["inputs"])
        if self.liquid == "pb":
            y, sums = self._pb(products, carry["sums"], None, backward=backward)
            return y, 0.0, {"inputs": inputs, "sums": sums}
        log_a, b = self.system()
        c, y, added = self.output_map(backward=backward), 0.0, 0.0
        for p, product in zip(self._orders(), products, strict=True):
            kernel = exponential_sum(log_a, c * b**p, u.shape[1])
            y = y + ops.fft_conv(product, kernel)
            added = added + (b**p)[None] * weighted_states(log_a, product)
        return y, added, {"inputs": inputs}

    def _run(self, u, dt, reset, carry, *, backward=False):
        if self.liquid in ("none", "exact"):
            return super()._run(u, dt, reset, carry, backward=backward)
        if self.liquid == "order":
            return self._cascade(u, reset, carry, backward=backward)
        products, inputs = consecutive_products(u, carry["inputs"], reset)
        if self.liquid == "kb":
            drive, given = self._drive_products, (u, products)
            y, h = self._scan(drive, given, reset, carry["states"], backward=backward)
            return y, {"states": h, "inputs": inputs}
        y, h = super()._run(u, None, reset, carry["states"], backward=backward)
        liquid, sums = self._pb(products, carry["sums"], reset, backward=backward)
        return y + liquid, {"states": h, "inputs": inputs, "sums": sums}

    def _drive(self, u, dt):
        a, x = super()._drive(u, dt)
        if self.liquid == "exact":
            a = (a[None, None] if dt is None else a) + self._added(u, dt)
        return a, x

    def _added(self, u, dt=None):
        """What is added to the decay, b v_t (B, T, d_model, N / 2)."""
        log_a, b = self.system(dt)
        if dt is None:
            log_a, b = log_a[None, None], b[None, None]
        if self.bound == "none":
            return b * u[..., None]
        if self.bound == "safe":
            size = jnp.abs(jnp.where(b == 0, 1, b))
            b = -jnp.expm1(jnp.real(log_a)) / size * b
        return b * jnp.tanh(u)[..., None]

    def _cascade(self, u, reset, carry, *, backward):
        """The sum of the first orders; their states are (B, P, d_model, N / 2)."""
        c = self.output_map(backward=backward)[None, None]

        def run(states, xs):
            u, reset = xs
            a, x = self._drive(u, None)
            added, total, scan = self._added(u), jnp.zeros_like(x), self.implementation
            for p in range(self.order):
                h, last = scan_states(a, x, states[:, p], reset, implementation=scan)
                before = jnp.concatenate([states[:, p, None], h[:, :-1]], axis=1)
                if reset is not None:
                    before = jnp.where(reset[..., None, None], 0, before)
                total, states, x = total + h, states.at[:, p].set(last), added * before
            return states, 2 * jnp.sum(jnp.real(c * total), axis=-1)

        last, y = in_chunks(run, carry, (u, reset))
        return y, last

    def _drive_products(self, u, products):
        a, x = self._drive(u, None)
        b = self.system()[1][None, None]
        for p, product in zip(self._orders(), products, strict=True):
            x = x + b**p * product[..., None]
        return a, x

    def _pb(self, products, sums, reset, *, backward):
        """The term of the products in a window, and the sums to go on with."""
        b, c = self.system()[1], self.output_map(backward=backward)
        weights = [2 * jnp.sum(jnp.real(c * b**p), axis=-1) for p in self._orders()]
        flat = jnp.concatenate(products, axis=-1)
        if self.window is None:
            ones = jnp.ones(flat.shape[-1], flat.dtype)
            flat, sums = ops.linear_scan(flat, ones, h0=sums, reset=reset)
        else:
            ones = jnp.ones((self.window, flat.shape[-1]), flat.dtype)
            flat, sums = ops.causal_conv1d(flat, ones, carry=sums, reset=reset)
        parts = jnp.split(flat, len(weights), axis=-1)
        return sum(w[None, None] * v for w, v in zip(weights, parts, strict=True)), sums

    def _orders(self):
        return range(2, self.order + 1)

    def _start(self, batch_size):
        states = super()._start(batch_size)
        if self.liquid in ("none", "exact"):
            return states
        if self.liquid == "order":
            return jnp.stack([states] * self.order, axis=1)
        wide, kept = self.log_dt.dtype, self.order - 1
        inputs = jnp.zeros((batch_size, kept, self.d_model), wide)
        if self.liquid == "kb":
            return {"states": states, "inputs": inputs}
        of_a_step = kept * self.d_model
        sums = jnp.zeros((batch_size, of_a_step), wide)
        if self.window is not None:
            sums = jnp.zeros((batch_size, self.window - 1, of_a_step), wide)
        return {"states": states, "inputs": inputs, "sums": sums}


def _refuse_overflow(y):
    """Raises FloatingPointError for infinite outputs, where they are known."""
    if isinstance(y, jax.core.Tracer) or bool(jnp.isfinite(y).all()):
        return
    raise FloatingPointError(
        "LiquidS4: the states overflowed: |a + b u_t| was above one for too many steps "
        "of these inputs. bound='safe' keeps it at or below one, bound='none' only "
        "suits inputs of mean zero and variance one"
    )
