"""PSNR and SSIM of video, one value per frame.

The metrics are made to be called inside a compiled function. Video is floating point in [0, 1]. Integer
video is refused: the difference of two uint8 frames wraps around, which once silently turned 13 dB into
61 dB. With a mask both measure a part of each frame, such as the person (`person_mask`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

# 100 dB: the PSNR given to frames that are equal, in place of infinity.
LEAST_MSE = 1e-10
# A pixel of a label image is drawn if one of its channels is brighter than this.
DRAWN = 0.1
# The drawn pixels are dilated by this share of the frame's shorter side, at least one pixel.
DILATION = 1 / 32

_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_C1 = 0.01**2
_SSIM_C2 = 0.03**2


def psnr_from_mse(mse: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns -10 log10(mse) in dB for a data range of 1; at most 100 (mse is floored at 1e-10)."""
    return -10.0 * jnp.log10(jnp.maximum(mse, LEAST_MSE))


def psnr_per_frame(
    prediction: Shaped[Array | np.ndarray, "*b t h w c"],
    target: Shaped[Array | np.ndarray, "..."],
    mask: Bool[Array | np.ndarray, "..."] | None = None,
) -> Float[Array, "*b t"]:
    """Returns the PSNR of each frame in dB, from the mean squared error over H, W and C.

    Both videos are floating point in [0, 1] and of one shape. Equal frames have 100 dB. With a mask
    (..., T, H, W) the mean is over its pixels; a frame without any is NaN, and one whose error is not a
    number is -inf.
    Raises TypeError for integer video and ValueError where the shapes differ.
    """
    prediction, target = _checked(prediction, target)
    error = jnp.square(prediction - target)
    if mask is None:
        return psnr_from_mse(jnp.mean(error, axis=(-3, -2, -1)))
    return _where_masked(psnr_from_mse(_masked_mean(error, mask)), mask)


def ssim_per_frame(
    prediction: Shaped[Array | np.ndarray, "*b t h w c"],
    target: Shaped[Array | np.ndarray, "..."],
    mask: Bool[Array | np.ndarray, "..."] | None = None,
) -> Float[Array, "*b t"]:
    """Returns the structural similarity of each frame, in [-1, 1] (Wang et al., IEEE TIP 2004).

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, population
    covariances; computed per channel where the window fits and averaged. Both videos are floating
    point in [0, 1] and of one shape. With a mask (..., T, H, W) the average is over its pixels on which
    the window can be centred; a frame without any is NaN, and one whose average is not a number is -inf.
    Raises TypeError for integer video and ValueError where the shapes differ or a frame is smaller
    than the window.
    """
    prediction, target = _checked(prediction, target)
    similarity = _ssim_map(prediction, target)
    if mask is None:
        return jnp.mean(similarity, axis=(-3, -2, -1))
    border = slice(_SSIM_WINDOW // 2, -(_SSIM_WINDOW // 2))
    inside = jnp.asarray(mask)[..., border, border]
    return _where_masked(_masked_mean(similarity, inside), inside)


def person_mask(labels: Float[Array, "*b h w c"]) -> Bool[Array, "*b h w"]:
    """Returns where the person of a pose image in [0, 1] is: its drawn pixels, dilated by a square.

    Drawn is what is brighter than `DRAWN` in any channel, on a black background. The square reaches
    `dilation_radius` pixels to each side.
    """
    drawn = (jnp.max(labels, axis=-1) > DRAWN).astype(jnp.float32)
    height, width = drawn.shape[-2:]
    size = 2 * dilation_radius(height, width) + 1
    flat = drawn.reshape(-1, height, width)
    for window in ((1, size, 1), (1, 1, size)):
        flat = lax.reduce_window(flat, 0.0, lax.max, window, (1, 1, 1), "SAME")
    return flat.reshape(drawn.shape) > 0.5


def dilation_radius(height: int, width: int) -> int:
    """Returns by how many pixels `person_mask` dilates the pose in a frame of height x width."""
    return max(1, round(DILATION * min(height, width)))


def _masked_mean(values: jax.Array, mask: jax.Array | np.ndarray) -> jax.Array:
    """Returns the mean of (..., H, W, C) over the pixels of a mask (..., H, W) and all channels."""
    chosen = jnp.where(jnp.asarray(mask)[..., None], values, 0.0)
    pixels = jnp.sum(mask, axis=(-2, -1), dtype=jnp.float32)
    return jnp.sum(chosen, axis=(-3, -2, -1)) / (jnp.maximum(pixels, 1.0) * values.shape[-1])


def _where_masked(values: jax.Array, mask: jax.Array | np.ndarray) -> jax.Array:
    """Returns NaN for frames whose mask is empty, and -inf for other values that are not a number."""
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    return jnp.where(jnp.any(jnp.asarray(mask), axis=(-2, -1)), values, jnp.nan)


def _ssim_map(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the structural similarity at each position where the window fits, per channel."""
    height, width = prediction.shape[-3:-1]
    if min(height, width) < _SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs frames of at least {_SSIM_WINDOW} x {_SSIM_WINDOW} pixels, these are "
            f"{height} x {width}."
        )
    # Variances do not change with a common offset, and float32 keeps more of them near zero.
    offset = jnp.mean(target, axis=(-3, -2), keepdims=True)
    x, y = prediction - offset, target - offset
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _blur(jnp.stack([x, y, x * x, y * y, x * y]))
    var_x = mean_xx - mean_x * mean_x
    var_y = mean_yy - mean_y * mean_y
    covariance = mean_xy - mean_x * mean_y
    mean_x, mean_y = mean_x + offset, mean_y + offset
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (var_x + var_y + _SSIM_C2)
    return luminance * structure


def _checked(prediction: Array | np.ndarray, target: Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    for name, video in (("prediction", prediction), ("target", target)):
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise TypeError(
                f"the {name} holds {video.dtype}, whose differences wrap or truncate; convert it "
                "to float32 in [0, 1] first."
            )
    if prediction.shape != target.shape or prediction.ndim < 4:
        raise ValueError(
            f"prediction {prediction.shape} and target {target.shape} must be videos of one shape "
            "(..., T, H, W, C)."
        )
    return jnp.asarray(prediction, jnp.float32), jnp.asarray(target, jnp.float32)


def _blur(image: jax.Array) -> jax.Array:
    """Applies the Gaussian window along H and W, keeping the positions where all of it fits.

    Two convolutions of single-channel planes: on a CPU six times as fast as sums of shifted planes.
    """
    distance = np.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
    density = np.exp(-0.5 * (distance / _SSIM_SIGMA) ** 2)
    weights = jnp.asarray(density / density.sum(), jnp.float32)
    *leading, height, width, channels = image.shape
    planes = jnp.moveaxis(image, -1, -3).reshape(-1, 1, height, width)
    for shape in ((1, 1, _SSIM_WINDOW, 1), (1, 1, 1, _SSIM_WINDOW)):
        planes = lax.conv_general_dilated(
            planes, weights.reshape(shape), (1, 1), "VALID", precision=lax.Precision.HIGHEST
        )
    return jnp.moveaxis(planes.reshape(*leading, channels, *planes.shape[-2:]), -3, -1)
