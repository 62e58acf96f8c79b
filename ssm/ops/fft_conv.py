"""A long convolution over time, one kernel per channel, by Fourier transforms."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import target
from ssm.ops.checks import accumulation_dtype, check_inexact, check_shape, is_complex
from ssm.ops.sharding import vary_alike, whole_sequences


def fft_conv(
    u: jax.Array, kernel: jax.Array, *, bidirectional: bool = False
) -> jax.Array:
    """Convolves every channel with a kernel of its own, as long as the sequence.

        y_t = sum_{j>=0} k0_j u_{t-j}
        y_t = sum_{j>=0} k0_j u_{t-j} + sum_{j>=0} k1_j u_{t+1+j}       bidirectional

    with zeros for what lies outside of u: no wrap-around.

    Args:
      u: (B, T, D), real or complex floating. T may be 0.
      kernel: (D, L) with L <= T; (2, D, L) if bidirectional, k1 the second.
      bidirectional: whether there is a second kernel, over what comes after.

    Returns:
      y (B, T, D) in the dtype of u. Transforms and sums are in float32, or wider if u
      is, and real unless u is complex.

    Differentiable in u and kernel in reverse mode, any number of times. The backward
    pass keeps the arguments and nothing else; an eighth of the channels is transformed
    at a time, so that padded spectra take less room than the arguments do.

    Under a mesh each device convolves its part of the batch and of the channels. A
    convolution needs the whole sequence: where time is sharded, that axis of the mesh
    takes a part of the channels instead, by one exchange on the way in and one on the
    way out; if it does not divide the channels, all of its devices do the same work.
    Inside a `shard_map` over time, exchange them before the call.

    Raises ValueError if an argument has a wrong shape or dtype, or a kernel is longer
    than the sequence.

    Source: Gu et al. 2022, S4 (2111.00396), section 2.4.
    """
    u, kernel = jnp.asarray(u), jnp.asarray(kernel)
    check_inexact("u", u)
    check_inexact("kernel", kernel)
    if u.ndim != 3:
        raise ValueError(f"u has shape {u.shape}, wanted three axes = (B, T, D)")
    _, time, width = u.shape
    length = kernel.shape[-1] if kernel.ndim else 0
    if bidirectional:
        meaning = "(2, D, L) when bidirectional"
        check_shape("kernel", kernel, (2, width, length), meaning=meaning)
    else:
        check_shape("kernel", kernel, (width, length), meaning="(D, L)")
    if length > time:
        raise ValueError(
            f"kernel has {length} taps, wanted L <= T = {time}: cut it to "
            f"kernel[..., :{time}], later taps meet no input"
        )
    if is_complex(kernel) and not is_complex(u):
        raise ValueError(
            f"kernel is {kernel.dtype} while u is {u.dtype}: wanted both real, or u "
            "made complex first"
        )
    if time == 0 or length == 0:
        return jnp.zeros_like(u)
    kernel = kernel.astype(accumulation_dtype(u.dtype)).reshape(-1, width, length)
    return whole_sequences(
        "fft_conv", _on_device, (u, kernel), axes=("btd", "-d-"), out_axes="btd"
    )


@jax.jit
def _on_device(u, kernel):
    return _convolve(*vary_alike((u, kernel)))


@jax.custom_vjp
def _convolve(u, kernel):
    """U (B, T, D), kernel (1 or 2, D, L) -> y (B, T, D)."""
    return _by_channels(_forward, u, jnp.swapaxes(kernel, 1, 2))


def _keep_arguments(u, kernel):
    return _convolve(u, kernel), (u, kernel)


def _cotangents(arguments, d_y):
    u, kernel = arguments
    d_u, d_kernel = _by_channels(_backward, d_y, u, jnp.swapaxes(kernel, 1, 2))
    return d_u, jnp.swapaxes(d_kernel, 1, 2)


_convolve.defvjp(_keep_arguments, _cotangents)


def _forward(u, kernel):
    dtype, length = kernel.dtype, _transform_length(u, kernel)
    product = _fft(u.astype(dtype), length) * _fft(_around(kernel, length), length)
    return _inverse_fft(product, length, dtype)[:, : u.shape[1]].astype(u.dtype)


def _backward(d_y, u, kernel):
    """Correlations: products with a conjugate, of what is conjugated before and after.

    d_u_t = sum_j k_j d_y_{t+j}        d_k_j = sum_{b,t} d_y_t u_{t-j}
    """
    dtype, length = kernel.dtype, _transform_length(u, kernel)
    d_y = _fft(jnp.conj(d_y.astype(dtype)), length)
    to_u = d_y * jnp.conj(_fft(_around(kernel, length), length))
    to_kernel = jnp.sum(d_y * jnp.conj(_fft(u.astype(dtype), length)), 0, keepdims=True)
    d_u = jnp.conj(_inverse_fft(to_u, length, dtype)[:, : u.shape[1]])
    d_kernel = jnp.conj(_inverse_fft(to_kernel, length, dtype))
    return d_u.astype(u.dtype), _taps(d_kernel, kernel)


def _around(kernel, length):
    """Both kernels on one circle, (1, length, D): the second runs back from its end."""
    if len(kernel) == 1:
        return kernel  # the transform pads it
    gap = length - 2 * kernel.shape[1]
    return jnp.concatenate(
        [
            jnp.pad(kernel[:1], ((0, 0), (0, gap), (0, 0))),
            jnp.flip(kernel[1:], axis=1),
        ],
        axis=1,
    )


def _taps(circle, kernel):
    """The taps of `kernel` on the circle: (1, length, D) -> (1 or 2, L, D)."""
    taps = kernel.shape[1]
    forward = circle[:, :taps]
    if len(kernel) == 1:
        return forward
    backward = jnp.flip(circle[:, circle.shape[1] - taps :], axis=1)
    return jnp.concatenate([forward, backward])


def _transform_length(u, kernel):
    """Long enough that no tap of either kernel wraps around to another step."""
    directions, taps, _ = kernel.shape
    at_least = u.shape[1] + taps - (2 - directions)
    if target.platform() == "tpu":
        return 1 << (at_least - 1).bit_length()
    return _next_smooth(at_least)


def _next_smooth(n):
    """The least number from n on without a prime factor above 5: quick to transform."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def _fft(x, length):
    """Over time, (B, T, D) -> (B, frequencies, D)."""
    transform = jnp.fft.fft if is_complex(x) else jnp.fft.rfft
    return transform(x, length, axis=1)


def _inverse_fft(spectrum, length, dtype):
    complex_out = jnp.issubdtype(dtype, jnp.complexfloating)
    transform = jnp.fft.ifft if complex_out else jnp.fft.irfft
    return transform(spectrum, length, axis=1)


def _by_channels(function, *arrays):
    """`function(*arrays)` for an eighth of the last axis, the channels, at a time.

    Where that does not divide them, the last part overlaps the one before.
    """
    width = arrays[0].shape[-1]
    part = max(_LEAST_CHANNELS, -(-width // 8))
    if part >= width:
        return function(*arrays)

    def step(outs, start):
        parts = function(
            *(lax.dynamic_slice_in_dim(a, start, part, axis=a.ndim - 1) for a in arrays)
        )
        return jax.tree.map(
            lambda out, part: lax.dynamic_update_slice_in_dim(
                out, part, start, axis=out.ndim - 1
            ),
            outs,
            parts,
        ), None

    outs = jax.tree.map(
        lambda out: jnp.zeros((*out.shape[:-1], width), out.dtype),
        jax.eval_shape(function, *(a[..., :part] for a in arrays)),
    )
    outs, _ = vary_alike((outs, arrays))
    starts = jnp.minimum(jnp.arange(0, width, part), width - part)
    return lax.scan(step, outs, starts)[0]


_LEAST_CHANNELS = 8
"""Of one part: fewer are rows of memory too short to read on their own."""
