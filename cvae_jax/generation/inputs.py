"""Validation of arrays passed in by users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvae_jax.data.pose import LANDMARKS
from cvae_jax.runtime.errors import UserError

Shape = Sequence[int | None]
"""The shape that an array must have; None stands for any length."""

# Keypoints are fractions of the frame's width and height; larger absolute values are pixel coordinates.
FARTHEST = 10.0


def as_array(name: str, values: Any) -> np.ndarray:
    """Return values as an array of numbers; raise UserError where they cannot be one."""
    try:
        found = np.asarray(values)
    except ValueError:
        raise UserError(f"The entries of {name} differ in shape; give one array.") from None
    if found.dtype.kind not in "buif":
        raise UserError(f"{name} has the dtype {found.dtype}; give an array of numbers.")
    return found


def require_shape(name: str, array: np.ndarray, shape: Shape) -> None:
    """Raise UserError unless an array has a shape."""
    fits = array.ndim == len(shape) and all(
        n in (None, own) for n, own in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("T" if n is None else str(n) for n in shape)
        wanted += "," * (len(shape) == 1)
        raise UserError(f"{name} has the shape {array.shape}; give an array of shape ({wanted}).")


def as_images(name: str, values: Any, shape: Shape) -> np.ndarray:
    """Return images of a shape as uint8; raise UserError unless they are integers from 0 to 255."""
    found = as_array(name, values)
    require_shape(name, found, shape)
    if found.dtype.kind not in "ui":
        raise UserError(
            f"{name} has the dtype {found.dtype}; give uint8 from 0 to 255 (for values from 0 to 1, "
            f"np.uint8(np.round(255 * {name})))."
        )
    if found.size and (found.min() < 0 or found.max() > 255):
        raise UserError(f"{name} has values from {found.min()} to {found.max()}; give values from 0 to 255.")
    return found.astype(np.uint8)


def as_vectors(name: str, values: Any, shape: Shape) -> np.ndarray:
    """Return vectors of a shape as float32; raise UserError unless they are finite."""
    found = as_array(name, values).astype(np.float32)
    require_shape(name, found, shape)
    if not np.isfinite(found).all():
        raise UserError(f"{name} has values that are not finite; give finite numbers.")
    return found


def as_keypoints(name: str, values: Any) -> np.ndarray:
    """Return keypoints (33, 2) or (T, 33, 2); raise UserError where they look like pixels.

    NaN is accepted: it stands for a joint that is not known.
    """
    found = as_array(name, values)
    shape = (None, len(LANDMARKS), 2)
    require_shape(name, found, shape[1:] if found.ndim == 2 else shape)
    if (abs(found) > FARTHEST).any():
        raise UserError(
            f"{name} has values up to {np.nanmax(abs(found)):.0f}; give x and y as fractions of the frame's "
            "width and height."
        )
    return found
