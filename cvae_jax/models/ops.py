"""The convolutions of the model, each in a plain and in a CPU formulation.

`plain` is what an accelerator compiles best and what every test compares to: native convolutions.
`cpu` computes the same values and gradients in forms that XLA's CPU backend runs several times
faster: 1x1 convolutions as matrix products, depthwise convolutions as shifted multiplies with the
weight gradient gathered row by row, large 3x3 convolutions by Winograd's algorithm, the weight gradients of
other 3x3 ones as one matrix product (and their results, if they have few channels), 7x7 ones as patches, and
bias gradients that do not fuse with their producer.
`resolve_formulation` is the only place that chooses. Maps are NHWC and kernels HWIO (depthwise:
3 x 3 x 1 x C), both float32 or both bfloat16; biases are float32, so that their gradients are summed in it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cvae_jax.models import winograd
from cvae_jax.models.products import bordered, convolve, over_pixels, product, rows
from cvae_jax.runtime.backend import target_backend

FORMULATIONS = ("auto", "plain", "cpu")
WINOGRAD_PIXELS, WINOGRAD_CHANNELS = 1024, 48  # at least so many, the latter of inputs and outputs


def resolve_formulation(name: str) -> str:
    """Return 'plain' or 'cpu' for `config.model.formulation`; 'auto' asks for the backend."""
    if name not in FORMULATIONS:
        raise ValueError(f"formulation is {name!r}; known: {', '.join(FORMULATIONS)}")
    if name == "auto":
        return "cpu" if target_backend() == "cpu" else "plain"
    return name


def clips_at_once(formulation: str) -> int | None:
    """Return how many clips the loop over time works on at once; None for the whole batch.

    The maps of a few clips fit a CPU's caches (measured: two clips take 73 ms each, ten 89 ms), and its
    memory then hardly depends on the batch.
    """
    return 2 if resolve_formulation(formulation) == "cpu" else None


def dense(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "1 1 i o"],
    bias: Float[Array, " o"],
    formulation: str,
) -> Float[Array, "n h w o"]:
    """Apply a 1x1 convolution."""
    if formulation == "cpu":
        return _dense_cpu(x, kernel[0, 0], bias)
    return _biased(convolve(x, kernel), bias)


def dense_halves(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "1 1 i o"],
    bias: Float[Array, " o"],
    formulation: str,
) -> tuple[Float[Array, "n h w p"], Float[Array, "n h w p"]]:
    """Apply a 1x1 convolution and return the first and the second half of its channels (o is even)."""
    if formulation == "cpu":
        half = bias.shape[0] // 2  # two products: nothing as wide as both halves is ever put together
        halves = (slice(half), slice(half, None))
        first, second = (_dense_cpu(x, kernel[0, 0, :, s], bias[s]) for s in halves)
    else:
        first, second = jnp.split(dense(x, kernel, bias, formulation), 2, axis=-1)
    return first, second


def conv3x3(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "3 3 i o"],
    bias: Float[Array, " o"],
    formulation: str,
) -> Float[Array, "n h w o"]:
    """Apply a 3x3 convolution with zero padding 1."""
    if formulation == "cpu":
        return _conv3x3_cpu(x, kernel, bias)
    return _biased(convolve(x, kernel, padding="SAME"), bias)


def depthwise3x3(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 1 c"],
    bias: Float[Array, " c"],
    formulation: str,
) -> Float[Array, "n h w c"]:
    """Apply a 3x3 depthwise convolution with zero padding 1."""
    if formulation == "cpu":
        return _depthwise_cpu(x, kernel, bias)
    return _biased(convolve(x, kernel, padding="SAME", depthwise=True), bias)


def conv_valid(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i o"],
    bias: Float[Array, " o"],
    formulation: str,
) -> Float[Array, "n h2 w2 o"]:
    """Apply a convolution without padding."""
    if formulation == "cpu":
        patches = _patches(x, *kernel.shape[:2])
        return _dense_cpu(patches, kernel.reshape(-1, kernel.shape[-1]), bias)
    return _biased(convolve(x, kernel), bias)


def _along_channels(bias: Array) -> Array:
    return bias[None, None, None, :]


def _biased(y: Array, bias: Array) -> Array:
    return (y + _along_channels(bias)).astype(y.dtype)


def _patches(x: Array, height: int, width: int) -> Array:
    """Every window's pixels side by side: (n, h - height + 1, w - width + 1, height * width * i)."""
    lines, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    beside = jnp.concatenate([x[:, :, j : j + columns] for j in range(width)], axis=-1)
    return jnp.concatenate([beside[:, i : i + lines] for i in range(height)], axis=-1)


def _bias_gradient(g: Array) -> Array:
    return jnp.sum(rows(g), axis=0, dtype=jnp.float32)


def _flip(kernel: Array) -> Array:
    return kernel[::-1, ::-1]


# --- 1x1 as a matrix product -------------------------------------------------------------------


@jax.custom_vjp
def _dense_cpu(x: Array, kernel: Array, bias: Array) -> Array:
    y = (product(rows(x), kernel) + bias[None, :]).astype(x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _dense_cpu_forward(x, kernel, bias):
    return _dense_cpu(x, kernel, bias), (x, kernel)


def _dense_cpu_backward(residuals, g):
    x, kernel = residuals
    g = lax.optimization_barrier(g)
    g_rows = rows(g)
    dx = product(g_rows, kernel.T).astype(x.dtype).reshape(x.shape)
    return dx, over_pixels(x, g), _bias_gradient(g)


_dense_cpu.defvjp(_dense_cpu_forward, _dense_cpu_backward)


# --- 3x3: by Winograd's algorithm, native, or one product for few outputs ---------------------------


@jax.custom_vjp
def _conv3x3_cpu(x: Array, kernel: Array, bias: Array) -> Array:
    if _suits_winograd(x, kernel):
        chosen = winograd.conv3x3
    else:
        chosen = _narrow_conv3x3 if _narrow(*kernel.shape[2:]) else _native_conv3x3
    return _biased(chosen(x, kernel), bias).astype(x.dtype)


def _conv3x3_cpu_forward(x, kernel, bias):
    return _conv3x3_cpu(x, kernel, bias), (x, kernel)


def _conv3x3_cpu_backward(residuals, g):
    x, kernel = residuals
    g = lax.optimization_barrier(g)
    if _suits_winograd(x, kernel):
        return *jax.vjp(winograd.conv3x3, x, kernel)[1](g), _bias_gradient(g)
    dx = _native_conv3x3(g, _flip(kernel).transpose(0, 1, 3, 2))
    kernel_gradient = _narrow_kernel_gradient if _narrow(*kernel.shape[2:]) else _kernel_gradient
    return dx, kernel_gradient(x, g), _bias_gradient(g)


def _suits_winograd(x: Array, kernel: Array) -> bool:
    """Whether the multiplications that Winograd's algorithm saves take longer than its transforms.

    Measured with the report's CVAE, and with the multiscale model, whose smaller maps were no faster with it
    and took longer to compile.
    """
    height, width = x.shape[1:3]
    is_even = height % 2 == 0 and width % 2 == 0
    is_large = height * width >= WINOGRAD_PIXELS and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS
    return x.dtype == jnp.float32 and is_even and is_large


def _narrow(inputs: int, outputs: int) -> bool:
    """Whether nine shifted copies of the outputs are less than three of the inputs and three of them."""
    return inputs > 2 * outputs


def _native_conv3x3(x: Array, kernel: Array) -> Array:
    return convolve(x, kernel, padding="SAME")


def _narrow_conv3x3(x: Array, kernel: Array) -> Array:
    """One (NHW, I) x (I, 9 O) product whose nine parts are shifted into place and summed, in float32."""
    outputs = kernel.shape[-1]
    taps = kernel.transpose(2, 0, 1, 3).reshape(x.shape[-1], 9 * outputs)
    parts = product(rows(x), taps).reshape(*x.shape[:3], 9 * outputs)
    return _sum_of_shifts(parts, lambda part, i, j: part[..., (3 * i + j) * outputs :][..., :outputs])


def _kernel_gradient(x: Array, g: Array) -> Array:
    """Column-shifted copies of x times row-shifted copies of g: one (3I, NHW) x (NHW, 3O) product."""
    height, width = x.shape[1:3]
    x_padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    g_padded = jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0)))
    x_columns = jnp.concatenate([x_padded[:, :, j : j + width] for j in range(3)], axis=-1)
    g_shifted = jnp.concatenate([g_padded[:, 2 - i : 2 - i + height] for i in range(3)], axis=-1)
    gradient = over_pixels(x_columns, g_shifted)
    return gradient.reshape(3, x.shape[-1], 3, g.shape[-1]).transpose(2, 0, 1, 3)


def _narrow_kernel_gradient(x: Array, g: Array) -> Array:
    """x times nine shifted copies of g: one (I, NHW) x (NHW, 9 O) product."""
    gradient = over_pixels(x, _patches(bordered(g), 3, 3))
    return _flip(gradient.reshape(x.shape[-1], 3, 3, g.shape[-1]).transpose(1, 2, 0, 3))


_conv3x3_cpu.defvjp(_conv3x3_cpu_forward, _conv3x3_cpu_backward)


# --- depthwise as nine shifted multiplies -----------------------------------------------------------


def _sum_of_shifts(x: Array, tap: Callable[[Array, int, int], Array]) -> Array:
    """Sum over the 3x3 neighbours (i, j) of each pixel of tap(neighbour, i, j), zeros around the image."""
    height, width = x.shape[1:3]
    padded = bordered(x)
    taps = [tap(padded[:, i : i + height, j : j + width], i, j) for i in range(3) for j in range(3)]
    return sum(taps[1:], start=taps[0])


def _shifted_multiplies(x: Array, kernel: Array) -> Array:
    wide = kernel.astype(jnp.float32)  # the taps are summed in float32
    return _sum_of_shifts(x, lambda part, i, j: part.astype(jnp.float32) * _along_channels(wide[i, j, 0]))


@jax.custom_vjp
def _depthwise_cpu(x: Array, kernel: Array, bias: Array) -> Array:
    return _biased(_shifted_multiplies(x, kernel), bias).astype(x.dtype)


def _depthwise_cpu_forward(x, kernel, bias):
    return _depthwise_cpu(x, kernel, bias), (x, kernel)


def _depthwise_cpu_backward(residuals, g):
    x, kernel = residuals
    g = lax.optimization_barrier(g)
    dx = _shifted_multiplies(g, _flip(kernel)).astype(x.dtype)
    return dx, _depthwise_kernel_gradient(x, g), _bias_gradient(g)


def _depthwise_kernel_gradient(x: Array, g: Array) -> Array:
    """Nine accumulators of one image row each, walked over all rows so that they stay in cache."""
    batch, height, width, channels = x.shape
    padded = lax.optimization_barrier(bordered(x))

    def add_row(number, sums):
        image, row = number // height, number % height
        g_row = lax.dynamic_slice(g, (image, row, 0, 0), (1, 1, width, channels))
        x_rows = lax.dynamic_slice(padded, (image, row, 0, 0), (1, 3, width + 2, channels))
        return tuple(
            sums[3 * i + j] + x_rows[:, i : i + 1, j : j + width] * g_row for i in range(3) for j in range(3)
        )

    zeros = tuple(jnp.zeros((1, 1, width, channels), jnp.float32) for _ in range(9))
    sums = lax.fori_loop(0, batch * height, add_row, zeros)
    return jnp.stack([_bias_gradient(s) for s in sums]).reshape(3, 3, 1, channels).astype(x.dtype)


_depthwise_cpu.defvjp(_depthwise_cpu_forward, _depthwise_cpu_backward)
