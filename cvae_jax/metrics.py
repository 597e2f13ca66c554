"""PSNR and SSIM of video, one value per frame.

The metrics are made to be called inside a compiled function; SSIM is some 60 small operations.
Video is floating point in [0, 1]. Integer video is refused: the difference of two uint8 frames
wraps around, which once silently turned 13 dB into 61 dB.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

# 100 dB: the PSNR given to frames that are equal, in place of infinity.
LEAST_MSE = 1e-10

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
) -> Float[Array, "*b t"]:
    """Returns the PSNR of each frame in dB, from the mean squared error over H, W and C.

    Both videos are floating point in [0, 1] and of one shape. Equal frames have 100 dB.
    Raises TypeError for integer video and ValueError where the shapes differ.
    """
    prediction, target = _checked(prediction, target)
    return psnr_from_mse(jnp.mean(jnp.square(prediction - target), axis=(-3, -2, -1)))


def ssim_per_frame(
    prediction: Shaped[Array | np.ndarray, "*b t h w c"],
    target: Shaped[Array | np.ndarray, "..."],
) -> Float[Array, "*b t"]:
    """Returns the structural similarity of each frame, in [-1, 1] (Wang et al., IEEE TIP 2004).

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, population
    covariances; computed per channel where the window fits and averaged. Both videos are floating
    point in [0, 1] and of one shape.
    Raises TypeError for integer video and ValueError where the shapes differ or a frame is smaller
    than the window.
    """
    prediction, target = _checked(prediction, target)
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
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


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
    """Applies the Gaussian window along H and W, keeping the positions where all of it fits."""
    distance = np.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
    density = np.exp(-0.5 * (distance / _SSIM_SIGMA) ** 2)
    weights = [float(weight) for weight in density / density.sum()]
    height, width = (size - _SSIM_WINDOW + 1 for size in image.shape[-3:-1])
    rows = [w * image[..., i : i + height, :, :] for i, w in enumerate(weights)]
    image = sum(rows[1:], start=rows[0])
    columns = [w * image[..., i : i + width, :] for i, w in enumerate(weights)]
    return sum(columns[1:], start=columns[0])
