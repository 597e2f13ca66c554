"""The three convolutions of the model, each in a plain and in a CPU formulation.

`plain` is what an accelerator compiles best and what every test compares to: native convolutions.
`cpu` computes the same values and gradients in forms that XLA's CPU backend runs several times
faster: 1x1 convolutions as matrix products, depthwise convolutions as shifted multiplies with the
weight gradient gathered row by row, weight gradients of 3x3 convolutions as one matrix product, and
bias gradients that do not fuse with their producer. `resolve_formulation` is the only place that
chooses. All arrays are NHWC float32, kernels HWIO (depthwise: 3 x 3 x 1 x C).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

FORMULATIONS = ("auto", "plain", "cpu")
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def resolve_formulation(name: str) -> str:
    """Return 'plain' or 'cpu' for `config.model.formulation`; 'auto' asks the default backend."""
    if name not in FORMULATIONS:
        raise ValueError(f"formulation is {name!r}; known: {', '.join(FORMULATIONS)}")
    if name == "auto":
        return "cpu" if jax.default_backend() == "cpu" else "plain"
    return name


def dense(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "1 1 i o"],
    bias: Float[Array, " o"],
    formulation: str,
) -> Float[Array, "n h w o"]:
    """Apply a 1x1 convolution."""
    if formulation == "cpu":
        return _dense_cpu(x, kernel[0, 0], bias)
    return _conv(x, kernel, "VALID") + _along_channels(bias)


def conv3x3(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "3 3 i o"],
    bias: Float[Array, " o"],
    formulation: str,
) -> Float[Array, "n h w o"]:
    """Apply a 3x3 convolution with zero padding 1."""
    if formulation == "cpu":
        return _conv3x3_cpu(x, kernel, bias)
    return _conv(x, kernel, "SAME") + _along_channels(bias)


def depthwise3x3(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 1 c"],
    bias: Float[Array, " c"],
    formulation: str,
) -> Float[Array, "n h w c"]:
    """Apply a 3x3 depthwise convolution with zero padding 1."""
    if formulation == "cpu":
        return _depthwise_cpu(x, kernel, bias)
    y = _conv(x, kernel, "SAME", feature_group_count=x.shape[-1])
    return y + _along_channels(bias)


def conv_valid(
    x: Float[Array, "n h w i"], kernel: Float[Array, "kh kw i o"], bias: Float[Array, " o"]
) -> Float[Array, "n h2 w2 o"]:
    """Apply a convolution without padding (native in both formulations)."""
    return _conv(x, kernel, "VALID") + _along_channels(bias)


def _along_channels(bias: Array) -> Array:
    return bias[None, None, None, :]


def _conv(x: Array, kernel: Array, padding: str, feature_group_count: int = 1) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        padding,
        dimension_numbers=_LAYOUT,
        feature_group_count=feature_group_count,
    )


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _bias_gradient(g: Array) -> Array:
    return jnp.sum(_rows(g), axis=0)


def _flip(kernel: Array) -> Array:
    return kernel[::-1, ::-1]


# --- 1x1 as a matrix product -------------------------------------------------------------------


@jax.custom_vjp
def _dense_cpu(x: Array, kernel: Array, bias: Array) -> Array:
    y = _rows(x) @ kernel + bias[None, :]
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _dense_cpu_forward(x, kernel, bias):
    return _dense_cpu(x, kernel, bias), (x, kernel)


def _dense_cpu_backward(residuals, g):
    x, kernel = residuals
    g = lax.optimization_barrier(g)
    g_rows = _rows(g)
    dx = (g_rows @ kernel.T).reshape(x.shape)
    d_kernel = lax.dot_general(_rows(x), g_rows, (((0,), (0,)), ((), ())))
    return dx, d_kernel, _bias_gradient(g)


_dense_cpu.defvjp(_dense_cpu_forward, _dense_cpu_backward)


# --- 3x3: native forward and input gradient, weight gradient as one product -----------------------


@jax.custom_vjp
def _conv3x3_cpu(x: Array, kernel: Array, bias: Array) -> Array:
    return _conv(x, kernel, "SAME") + _along_channels(bias)


def _conv3x3_cpu_forward(x, kernel, bias):
    return _conv3x3_cpu(x, kernel, bias), (x, kernel)


def _conv3x3_cpu_backward(residuals, g):
    x, kernel = residuals
    g = lax.optimization_barrier(g)
    dx = _conv(g, _flip(kernel).transpose(0, 1, 3, 2), "SAME")
    return dx, _conv3x3_kernel_gradient(x, g), _bias_gradient(g)


def _conv3x3_kernel_gradient(x: Array, g: Array) -> Array:
    """Column-shifted copies of x times row-shifted copies of g: one (3I, NHW) x (NHW, 3O) product."""
    height, width = x.shape[1:3]
    x_padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    g_padded = jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0)))
    x_columns = jnp.concatenate([x_padded[:, :, j : j + width] for j in range(3)], axis=-1)
    g_shifted = jnp.concatenate([g_padded[:, 2 - i : 2 - i + height] for i in range(3)], axis=-1)
    product = lax.dot_general(_rows(x_columns), _rows(g_shifted), (((0,), (0,)), ((), ())))
    return product.reshape(3, x.shape[-1], 3, g.shape[-1]).transpose(2, 0, 1, 3)


_conv3x3_cpu.defvjp(_conv3x3_cpu_forward, _conv3x3_cpu_backward)


# --- depthwise as nine shifted multiplies -----------------------------------------------------------


def _shifted_multiplies(x: Array, kernel: Array) -> Array:
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [
        padded[:, i : i + height, j : j + width] * kernel[i, j, 0][None, None, None, :]
        for i in range(3)
        for j in range(3)
    ]
    return sum(taps[1:], start=taps[0])


@jax.custom_vjp
def _depthwise_cpu(x: Array, kernel: Array, bias: Array) -> Array:
    return _shifted_multiplies(x, kernel) + _along_channels(bias)


def _depthwise_cpu_forward(x, kernel, bias):
    return _depthwise_cpu(x, kernel, bias), (x, kernel)


def _depthwise_cpu_backward(residuals, g):
    x, kernel = residuals
    g = lax.optimization_barrier(g)
    dx = _shifted_multiplies(g, _flip(kernel))
    return dx, _depthwise_kernel_gradient(x, g), _bias_gradient(g)


def _depthwise_kernel_gradient(x: Array, g: Array) -> Array:
    """Nine accumulators of one image row each, walked over the rows so that they stay in cache."""
    batch, height, width, channels = x.shape
    padded = lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))

    def add_row(row, sums):
        g_row = lax.dynamic_slice(g, (0, row, 0, 0), (batch, 1, width, channels))
        x_rows = lax.dynamic_slice(padded, (0, row, 0, 0), (batch, 3, width + 2, channels))
        return tuple(
            sums[3 * i + j] + x_rows[:, i : i + 1, j : j + width] * g_row
            for i in range(3)
            for j in range(3)
        )

    zeros = tuple(jnp.zeros((batch, 1, width, channels), x.dtype) for _ in range(9))
    sums = lax.fori_loop(0, height, add_row, zeros)
    return jnp.stack([_bias_gradient(s) for s in sums]).reshape(3, 3, 1, channels)


_depthwise_cpu.defvjp(_depthwise_cpu_forward, _depthwise_cpu_backward)
