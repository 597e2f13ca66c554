"""The part of the picture that is kept: fixed over the clip, with the aspect of the frame."""

from __future__ import annotations

import numpy as np

from cvae_jax.data.pose import USED_LANDMARKS, landmark_index
from cvae_jax.prepare.settings import Box
from cvae_jax.runtime.errors import UserError

PORTRAIT, LANDSCAPE = (64, 32), (32, 64)  # H, W
USED = [landmark_index(name) for name in USED_LANDMARKS]


def extent(landmarks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return float64 (4,): x0, y0, x1, y1 of all bodies (T, 33, 2) in pixels, inside a picture of `size`."""
    points = landmarks[:, USED].reshape(-1, 2)
    points = np.clip(points[np.isfinite(points).all(axis=1)], 0, size)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def choose_crop(
    landmarks: np.ndarray,
    size: tuple[int, int],
    given: Box | None,
    margin: float,
    frame_size: tuple[int, int] | None,
) -> tuple[Box, tuple[int, int]]:
    """Return the crop and the frame size (H, W).

    landmarks: (T, 33, 2) in pixels of the video, NaN where unknown; of use where no crop is given.
    size: (width, height) of the video. given: a crop that is grown to the frame's aspect. margin: of the
    body's extent. frame_size: None: (64, 32) or (32, 64), as what is kept is tall or wide.

    The crop lies inside the picture: where the body's extent is too long for it, it is cut off. Raises
    UserError for a given crop outside the picture, or one that cannot be grown inside it.
    """
    if given is not None:
        check_inside(given, size)
    x0, y0, x1, y1 = extent(landmarks, size) if given is None else given
    center = np.array((x0 + x1, y0 + y1)) / 2
    wanted = np.array((x1 - x0, y1 - y0)) * (1 if given else 1 + margin)
    if frame_size is None:
        frame_size = PORTRAIT if wanted[1] > wanted[0] else LANDSCAPE
    frame = np.array(frame_size[::-1])
    unit = max(wanted / frame)  # video pixels per frame pixel
    largest = min(np.array(size) / frame)
    if given is not None and unit > largest:
        raise UserError(
            f"--crop={','.join(map(str, given))} cannot be grown to the aspect of frames of {frame_size[1]} "
            f"x {frame_size[0]} inside the picture of {size[0]} x {size[1]}: give a smaller crop, or "
            "another --frame_size=H,W."
        )
    sides = np.maximum(1, np.floor(frame * min(unit, largest) + 1e-6))
    if given is not None:
        sides = np.maximum(sides, wanted)  # not cut by rounding
    corner = np.clip(np.round(center - sides / 2), 0, np.array(size) - sides)
    left, top, right, bottom = (int(v) for v in (*corner, *(corner + sides)))
    return (left, top, right, bottom), frame_size


def check_inside(box: Box, size: tuple[int, int]) -> None:
    """Raise UserError unless a box lies in the picture of `size` (width, height)."""
    if box[0] < 0 or box[1] < 0 or box[2] > size[0] or box[3] > size[1]:
        raise UserError(
            f"--crop={','.join(map(str, box))} reaches outside the picture, which is {size[0]} pixels "
            f"wide and {size[1]} high: give x0,y0,x1,y1 inside it."
        )


def cut_off(landmarks: np.ndarray, crop: Box, size: tuple[int, int]) -> float:
    """Return the share of the frames of (T, 33, 2) in which the body's joints leave the crop.

    Joints outside the picture of `size` (width, height) do not count, since no crop could hold them, nor do
    those that are off by less than 5 % of the crop's shorter side.
    """
    points = landmarks[:, USED]
    seen = ((points >= 0) & (points <= size)).all(axis=-1)
    slack = 0.05 * min(crop[2] - crop[0], crop[3] - crop[1])
    inside = ((points >= np.array(crop[:2]) - slack) & (points <= np.array(crop[2:]) + slack)).all(axis=-1)
    known = np.isfinite(landmarks).all(axis=-1)[:, USED].any(axis=1)
    return float(np.any(seen & ~inside, axis=1)[known].mean()) if known.any() else 0.0
