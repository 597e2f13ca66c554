"""Matrix products and convolutions, and their gradients, whose sums are float32 in every precision.

float32 factors are multiplied as float32: no TensorFloat-32 of a GPU and no bfloat16 passes of a TPU stand in
for them. bfloat16 factors give float32 sums, which the caller rounds once, or `convolve` does. For bfloat16
convolutions on NVIDIA GPUs, this is left to cuDNN, which sums them in float32: asked for float32 results, XLA
would convert the factors to float32 first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from cvae_jax.runtime.backend import target_backend

Pairs = tuple[tuple[int, int], tuple[int, int]]


def full_precision(x: Array) -> lax.Precision | None:
    """Return what keeps products of x in float32 if x is float32."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def product(x: Array, y: Array, contract: tuple[int, int] = (-1, 0)) -> Array:
    """Return the sums over an axis of x and one of y, in float32, without batch axes."""
    axes = ((contract[0] % x.ndim,), (contract[1] % y.ndim,))
    return lax.dot_general(
        x, y, (axes, ((), ())), precision=full_precision(x), preferred_element_type=jnp.float32
    )


def rows(x: Array) -> Array:
    """Return the pixels of maps, or the vectors of a sequence, as the rows of a matrix."""
    return x.reshape(-1, x.shape[-1])


def bordered(x: Array) -> Array:
    """Return maps with one pixel of zeros around them."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def over_pixels(x: Array, y: Array) -> Array:
    """Return x^T y of the pixels' channels (i, o), in the dtype of x: the gradient of a 1x1 kernel."""
    return product(rows(x), rows(y), contract=(0, 0)).astype(x.dtype)


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int] = (1, 1),
    padding: str | Pairs = "VALID",
    lhs_dilation: Sequence[int] = (1, 1),
    depthwise: bool = False,
) -> Array:
    """Return a convolution of maps (n, h, w, i) with a kernel (kh, kw, i, o) in the dtype of the maps.

    padding: 'VALID', 'SAME' (for strides of 1 and odd kernels), or how many zeros go before and after each
    axis of the map, between whose pixels `lhs_dilation` has put zeros. depthwise: each channel is convolved
    by itself, with a kernel (kh, kw, 1, i).
    """
    height, width = kernel.shape[:2]
    known = {"VALID": ((0, 0), (0, 0)), "SAME": ((height // 2,) * 2, (width // 2,) * 2)}
    zeros = known[padding] if isinstance(padding, str) else padding
    return _convolve(x, kernel, tuple(strides), zeros, tuple(lhs_dilation), depthwise)


# Without a gradient of its own, JAX multiplies a bfloat16 map with the float32 gradient of the sums, and
# refuses: convolutions take operands of one dtype.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(x, kernel, strides, padding, lhs_dilation, depthwise):
    return _sums(
        x,
        kernel,
        window_strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
    )


def _convolve_forward(x, kernel, strides, padding, lhs_dilation, depthwise):
    return _convolve(x, kernel, strides, padding, lhs_dilation, depthwise), (x, kernel)


def _convolve_backward(strides, padding, lhs_dilation, depthwise, residuals, g):
    x, kernel = residuals
    of_x, of_kernel = [], []  # the padding of both gradients along each axis
    for axis in (0, 1):
        taps, before = kernel.shape[axis], padding[axis][0]
        wide = (x.shape[1 + axis] - 1) * lhs_dilation[axis] + 1
        covered = (g.shape[1 + axis] - 1) * strides[axis] + 1
        of_x.append((taps - 1 - before, wide - covered + before))
        of_kernel.append((before, taps - 1 + covered - wide - before))
    flipped = kernel[::-1, ::-1]
    dx = _sums(
        g,
        flipped if depthwise else flipped.swapaxes(2, 3),
        window_strides=lhs_dilation,
        padding=of_x,
        lhs_dilation=strides,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
    )
    d_kernel = _sums(
        x,
        g,
        window_strides=(1, 1),
        padding=of_kernel,
        lhs_dilation=lhs_dilation,
        rhs_dilation=strides,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=x.shape[-1] if depthwise else 1,
    )
    return dx, d_kernel


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _sums(x: Array, kernel: Array, **how) -> Array:
    dtype = x.dtype if target_backend() == "gpu" else jnp.float32
    sums = lax.conv_general_dilated(
        x, kernel, **how, precision=full_precision(x), preferred_element_type=dtype
    )
    return sums.astype(x.dtype)
