"""Building blocks: convolution layers, and the reference model's residual block, DCB and BatchNorm.

The reference model's maps keep the frame's resolution everywhere (no stride). Initialisation is PyTorch's
default: weights and biases uniform in +-1/sqrt(fan_in) (He et al., 2015, with a = sqrt(5)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cvae_jax.models import ops, strided
from cvae_jax.models.normalisation import normalise
from cvae_jax.runtime.errors import UserError

GROUPS = 8  # of GroupNorm, at most; a group has at least four channels


def uniform_fan_in(fan_in: int) -> Callable[..., Array]:
    """Return an initialiser: uniform in +-1/sqrt(fan_in), PyTorch's default for convolutions."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def parameter(module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]) -> Array:
    """Return the parameter `name` of a module, which `init(key, shape)` makes.

    Flax's own `param` traces `init` at every use to compare shapes: a fifth of the time to trace a step.
    """
    if module.is_initializing():
        return module.param(name, init, shape)
    value = jnp.asarray(module.get_variable("params", name))
    if value.shape != shape:
        raise ValueError(f"{'/'.join(module.path)}: {name} is {value.shape}, not {shape}.")
    return value


MOST_OCTAVES = 126  # of `positions`: the frequencies of more are infinite in float32


def refuse_octaves(kind: str, octaves: int) -> None:
    """Raise UserError for more octaves of `positions` than a model of this kind can have."""
    if octaves > MOST_OCTAVES:
        raise UserError(f"config.model.{kind}.position_octaves is {octaves}; give at most {MOST_OCTAVES}.")


def positions(height: int, width: int, octaves: int) -> Float[Array, "{height} {width} c"]:
    """Return where each pixel is, (height, width, 4 * octaves), in [-1, 1].

    With row and column running over [-1, 1]: sin and cos of pi/2 * 2^k times each, k < octaves (Fourier
    features, Tancik et al., 2020; with one octave the image's sides can be told apart, as in CoordConv,
    Liu et al., 2018).
    """
    channels = []
    for k in range(octaves):
        row, column = (0.5 * jnp.pi * 2**k * jnp.linspace(-1.0, 1.0, n) for n in (height, width))
        for wave in (jnp.sin, jnp.cos):
            channels.append(jnp.broadcast_to(wave(row)[:, None], (height, width)))
            channels.append(jnp.broadcast_to(wave(column)[None, :], (height, width)))
    return jnp.stack(channels, axis=-1)


def leaky_relu(x: Array, slope: float) -> Array:
    """Leaky ReLU with PyTorch's gradient at zero (the slope)."""
    return jnp.where(x > 0, x, slope * x)


class Convolution(nn.Module):
    """A convolution with bias, in the precision of its input (parameters are kept in float32).

    `kind` is 'dense' (1x1), 'dense_halves' (1x1, giving the two halves of its channels as a pair), 'conv3x3',
    'enlarged_conv3x3' (of the map enlarged by 2), 'depthwise3x3' or 'conv7x7_valid'.
    """

    kind: str
    features: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Any:
        channels = x.shape[-1]
        size = {"dense": 1, "dense_halves": 1, "conv7x7_valid": 7}.get(self.kind, 3)
        inputs = 1 if self.kind == "depthwise3x3" else channels
        shape = (size, size, inputs, self.features)
        init = uniform_fan_in(size * size * inputs)
        kernel, bias = parameter(self, "kernel", init, shape), parameter(self, "bias", init, shape[-1:])
        apply: Callable[..., Any] = {
            "dense": ops.dense,
            "dense_halves": ops.dense_halves,
            "conv3x3": ops.conv3x3,
            "enlarged_conv3x3": _enlarged_conv3x3,
            "depthwise3x3": ops.depthwise3x3,
            "conv7x7_valid": ops.conv_valid,
        }[self.kind]
        return apply(x, kernel.astype(x.dtype), bias, self.formulation)


def _enlarged_conv3x3(x: Array, kernel: Array, bias: Array, formulation: str) -> Array:
    y = strided.enlarged_conv3x3(x, kernel, formulation)
    return (y + bias[None, None, None]).astype(y.dtype)


class ResidualBlock(nn.Module):
    """RB(i, o): two 3x3 convolutions with leaky ReLU (0.01) plus a skip (1x1 where i != o)."""

    features: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h w o"]:
        y = Convolution("conv3x3", self.features, self.formulation, name="conv1")(x)
        y = Convolution("conv3x3", self.features, self.formulation, name="conv2")(leaky_relu(y, 0.01))
        y = leaky_relu(y, 0.01)
        if x.shape[-1] != self.features:
            x = Convolution("dense", self.features, self.formulation, name="skip")(x)
        return y + x


class DepthConvBlock(nn.Module):
    """DCB(i, o): a depthwise-separable residual convolution, then a gated feed-forward residual."""

    features: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h w o"]:
        inputs, features = x.shape[-1], self.features

        def dense(width: int, name: str) -> Convolution:
            return Convolution("dense", width, self.formulation, name=name)

        y = leaky_relu(dense(inputs, "conv1")(x), 0.01)
        y = Convolution("depthwise3x3", inputs, self.formulation, name="depth_conv")(y)
        y = dense(features, "conv2")(y)
        x = y + (dense(features, "skip")(x) if inputs != features else x)
        a, b = Convolution("dense_halves", 4 * features, self.formulation, name="ffn_in")(x)
        return x + dense(features, "ffn_out")(a * leaky_relu(b, 0.1))


class BatchNorm(nn.Module):
    """BatchNorm whose statistics are per time step, over real clips only and over all devices.

    Input is (g, b, h, w, c): g time steps of b clips. In training each step is normalised with the
    statistics of its own (b, h, w) where `mask` (g, b) is 1, summed over `axis_name`; the running values are
    then updated step after step, in order: running <- 0.9 running + 0.1 batch, with the unbiased
    variance n/(n-1) of the global n (PyTorch's rule; Flax's own uses the biased one). A step whose mask is 0
    throughout updates nothing. Statistics are taken in float32; the output has the input's precision.

    `offset` (c,) is added to the input first: a bias. The batch's mean takes it away again, so in training it
    only reaches the running mean.
    """

    axis_name: str | None
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "g b h w c"],
        mask: Float[Array, "g b"],
        train: bool,
        offset: Float[Array, " c"] | None = None,
    ) -> Float[Array, "g b h w c"]:
        channels, precision = x.shape[-1], x.dtype
        offset = jnp.zeros(channels) if offset is None else offset
        scale = parameter(self, "scale", nn.initializers.ones, (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            shift = bias + (offset - running_mean.value) * factor
            return (x * factor[(None,) * 4] + shift[(None,) * 4]).astype(precision)
        y, mean, var, count = normalise(x, scale, bias, mask, self.epsilon, self.axis_name)
        if not self.is_initializing():
            n = count[:, None]
            unbiased = var * (n / jnp.maximum(n - 1, 1))
            running_mean.value = self._update(running_mean.value, mean + offset[None], count)
            running_var.value = self._update(running_var.value, unbiased, count)
        return y

    def _update(self, running: Array, steps: Float[Array, "g c"], count: Float[Array, " g"]) -> Array:
        for g in range(steps.shape[0]):
            updated = (1 - self.momentum) * running + self.momentum * steps[g]
            running = jnp.where(count[g] > 0, updated, running)
        return lax.stop_gradient(running)


class GroupNorm(nn.Module):
    """GroupNorm with statistics in float32; the output has the input's precision."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, channels = x.shape[0], x.shape[-1]
        groups = next(g for g in range(min(GROUPS, max(1, channels // 4)), 0, -1) if channels % g == 0)
        scale = parameter(self, "scale", nn.initializers.ones, (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        wide = x.astype(jnp.float32)
        # By channel first, then over the channels of a group: reductions along whole rows are fast on a CPU.
        moments = [jnp.mean(power, axis=(1, 2)) for power in (wide, wide * wide)]
        mean, square = (jnp.mean(m.reshape(n, groups, -1), axis=-1) for m in moments)
        inverse = lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + self.epsilon)
        mean, inverse = (jnp.repeat(s, channels // groups, axis=1) for s in (mean, inverse))
        factor = inverse * scale[None]
        shift = bias[None] - mean * factor
        return (wide * factor[:, None, None] + shift[:, None, None]).astype(x.dtype)


def halve(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """Return the mean of each 2x2 pixels."""
    n, h, w, c = x.shape
    return jnp.mean(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))
