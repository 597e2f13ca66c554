"""Convolutions that change the size of a map, each in a plain and in a CPU formulation.

`plain` is the reference for every test: strided and dilated convolutions as they are. XLA's CPU backend runs
those six times slower than convolutions without strides, so `cpu` computes the same values with the latter.
A 4x4 convolution of stride 2 becomes a 2x2 convolution of blocks of 2x2 pixels (space to depth). Its
transpose becomes a 2x2 convolution that produces such blocks (depth to space). So does a 3x3 convolution of a
map enlarged by 2, with four ninths of the operations. `cvae_jax.models.ops.resolve_formulation` chooses.

Maps are NHWC and kernels HWIO, including those of transposed convolutions; both are float32 or both bfloat16.
Nothing here adds a bias.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cvae_jax.models import ops
from cvae_jax.models.products import bordered, convolve, over_pixels, product

# From this many inputs per output on, all inputs are multiplied with all taps and the products shifted.
NARROW = 8


def downsample4x4(
    x: Float[Array, "n h w i"], kernel: Float[Array, "4 4 i o"], formulation: str
) -> Float[Array, "n h//2 w//2 o"]:
    """Apply a 4x4 convolution of stride 2 with zero padding 1; h and w are even."""
    if formulation == "cpu":
        blocks = kernel.reshape(2, 2, 2, 2, *kernel.shape[2:]).transpose(0, 2, 1, 3, 4, 5)
        return _conv2x2(space_to_depth(bordered(x)), blocks.reshape(2, 2, -1, kernel.shape[-1]))
    return convolve(x, kernel, strides=(2, 2), padding=((1, 1), (1, 1)))


def upsample4x4(
    x: Float[Array, "n h w i"], kernel: Float[Array, "4 4 i o"], formulation: str
) -> Float[Array, "n 2*h 2*w o"]:
    """Apply a transposed 4x4 convolution of stride 2 with padding 1.

    out[2 p + k - 1] += x[p] kernel[k] along each axis (PyTorch's ConvTranspose2d).
    """
    if formulation == "cpu":
        inputs, outputs = kernel.shape[2:]
        blocks = kernel.reshape(2, 2, 2, 2, inputs, outputs).transpose(0, 2, 4, 1, 3, 5)
        flipped = blocks[::-1, ::-1].reshape(2, 2, inputs, 4 * outputs)
        return depth_to_space(_conv2x2(bordered(x), flipped))[:, 1:-1, 1:-1]
    return convolve(x, kernel[::-1, ::-1], padding=((2, 2), (2, 2)), lhs_dilation=(2, 2))


def enlarged_conv3x3(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"], formulation: str
) -> Float[Array, "n 2*h 2*w o"]:
    """Enlarge a map by 2 (each pixel becomes 2x2), then apply a 3x3 convolution with zero padding 1."""
    if formulation == "cpu":
        return upsample4x4(x, _enlarging(kernel), formulation)
    large = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return conv3x3(large, kernel, formulation)


def conv3x3(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"], formulation: str
) -> Float[Array, "n h w o"]:
    """Apply a 3x3 convolution with zero padding 1; see `cvae_jax.models.ops`."""
    return ops.conv3x3(x, kernel, jnp.zeros(kernel.shape[-1]), formulation)


def to_vector(
    x: Float[Array, "n h w i"], kernel: Float[Array, "h w i o"], formulation: str
) -> Float[Array, "n 1 1 o"]:
    """Apply a convolution without padding whose kernel is as large as the map."""
    if formulation == "cpu":
        return _product(x.reshape(len(x), -1), kernel.reshape(-1, kernel.shape[-1]))[:, None, None]
    return convolve(x, kernel)


def from_vector(
    x: Float[Array, "n 1 1 i"], kernel: Float[Array, "h w i o"], formulation: str
) -> Float[Array, "n h w o"]:
    """Apply the transposed convolution without padding that turns a vector into a map."""
    del formulation  # one product everywhere
    height, width, inputs, outputs = kernel.shape
    taps = _product(x.reshape(len(x), inputs), kernel.transpose(2, 0, 1, 3).reshape(inputs, -1))
    return taps.reshape(len(x), height, width, outputs)


def max_pool2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """Return the maximum of each 2x2 pixels; the first of equal ones gets the gradient (as in PyTorch)."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    larger = lambda a, b: jnp.where(a >= b, a, b)  # noqa: E731
    rows = [larger(x[:, :, row, :, 0], x[:, :, row, :, 1]) for row in (0, 1)]
    return larger(*rows)


def space_to_depth(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 4*c"]:
    """Return each block of 2x2 pixels as one pixel of 4c channels, row by row."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


def depth_to_space(x: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w c//4"]:
    """Return the inverse of `space_to_depth`."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c // 4)


def _enlarging(kernel: Array) -> Array:
    """Return the kernel with which `upsample4x4` equals a 3x3 convolution of the enlarged map.

    An even row of the result sees the row before through the first tap and its own through the other two; an
    odd one its own through the first two and the row after through the last.
    """
    for axis in (0, 1):
        first, middle, last = jnp.split(kernel, 3, axis)
        kernel = jnp.concatenate([last, middle + last, first + middle, first], axis)
    return kernel


@jax.custom_vjp
def _conv2x2(x: Array, kernel: Array) -> Array:
    """A 2x2 convolution without padding.

    Its gradient is written out, because inside a loop XLA runs the derived one a hundred times slower.
    """
    inputs, outputs = kernel.shape[2:]
    if inputs < NARROW * outputs:
        return convolve(x, kernel)
    taps = _product(x.reshape(-1, inputs), kernel.transpose(2, 0, 1, 3).reshape(inputs, -1))
    taps = taps.reshape(*x.shape[:3], 4, outputs)
    first, *others = _corners(taps, lambda part, tap: part[..., tap, :])
    return sum(others, start=first)


def _conv2x2_forward(x, kernel):
    return _conv2x2(x, kernel), (x, kernel)


def _conv2x2_backward(residuals, g):
    x, kernel = residuals
    inputs, outputs = kernel.shape[2:]
    padded = bordered(g)
    dx = convolve(padded, kernel[::-1, ::-1].transpose(0, 1, 3, 2))
    if inputs < NARROW * outputs:
        taps = _corners(x, lambda part, tap: over_pixels(part, g))
        return dx, jnp.stack(taps).reshape(kernel.shape)
    shifted = jnp.concatenate(_corners(padded, lambda part, tap: part), axis=-1)
    d_kernel = over_pixels(x, shifted).reshape(inputs, 2, 2, outputs)[:, ::-1, ::-1]
    return dx, d_kernel.transpose(1, 2, 0, 3)


_conv2x2.defvjp(_conv2x2_forward, _conv2x2_backward)


def _corners(x: Array, of: Callable[[Array, int], Array]) -> list[Array]:
    """Return of(part, number) for the four parts of a map that lie one pixel apart, row by row."""
    height, width = x.shape[1] - 1, x.shape[2] - 1
    return [of(x[:, n // 2 : n // 2 + height, n % 2 : n % 2 + width], n) for n in range(4)]


def _product(x: Array, y: Array) -> Array:
    """The matrix product, summed in float32, in the dtype of the factors."""
    return product(x, y).astype(x.dtype)
