"""Pose labels: a body's keypoints drawn as coloured limbs on black.

The body has MediaPipe's 33 landmarks, of which a label uses those in USED_LANDMARKS: another
tracker or a procedural body fills these and leaves the rest NaN. "Left" is the person's own left.
Needs NumPy and Pillow only.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

LANDMARKS: tuple[str, ...] = (
    "nose",
    "left_eye_inner",
    "left_eye",
    "left_eye_outer",
    "right_eye_inner",
    "right_eye",
    "right_eye_outer",
    "left_ear",
    "right_ear",
    "mouth_left",
    "mouth_right",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_pinky",
    "right_pinky",
    "left_index",
    "right_index",
    "left_thumb",
    "right_thumb",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "left_heel",
    "right_heel",
    "left_foot_index",
    "right_foot_index",
)


class Limb(NamedTuple):
    """A chain of joints drawn as one line."""

    name: str
    joints: tuple[str, ...]
    color: tuple[int, int, int]


# Drawn in this order: what comes later covers what came before. Left is warm, right is cool.
LIMBS: tuple[Limb, ...] = (
    Limb("left_side", ("left_shoulder", "left_hip"), (160, 128, 0)),
    Limb("right_side", ("right_shoulder", "right_hip"), (0, 144, 64)),
    Limb("shoulders", ("left_shoulder", "right_shoulder"), (144, 144, 144)),
    Limb("hips", ("left_hip", "right_hip"), (144, 64, 208)),
    Limb("left_leg", ("left_hip", "left_knee", "left_ankle", "left_foot_index"), (255, 160, 0)),
    Limb("right_leg", ("right_hip", "right_knee", "right_ankle", "right_foot_index"), (0, 224, 208)),
    Limb("left_arm", ("left_shoulder", "left_elbow", "left_wrist"), (255, 48, 48)),
    Limb("right_arm", ("right_shoulder", "right_elbow", "right_wrist"), (48, 96, 255)),
)
HEAD_JOINTS: tuple[str, ...] = ("nose", "left_ear", "right_ear")
HEAD_COLOR: tuple[int, int, int] = (255, 255, 255)

# The landmarks that a label depends on, in the order of LANDMARKS.
USED_LANDMARKS: tuple[str, ...] = tuple(
    name for name in LANDMARKS if name in HEAD_JOINTS or any(name in limb.joints for limb in LIMBS)
)


def landmark_index(name: str) -> int:
    """Row of a named landmark in a keypoints array; ValueError if there is no such landmark."""
    return LANDMARKS.index(name)


@dataclasses.dataclass(frozen=True)
class PoseStyle:
    """How a label is drawn; see `draw_pose`."""

    line_width: float = 1 / 16
    head_radius: float = 1 / 12
    oversampling: int = 16


STYLE = PoseStyle()


def draw_pose(
    keypoints: np.ndarray,
    visibility: np.ndarray | None = None,
    frame_size: tuple[int, int] = (64, 32),
    *,
    min_visibility: float = 0.0,
    style: PoseStyle = STYLE,
) -> np.ndarray:
    """Draws one body as coloured lines and a head on black: uint8 (H, W, 3) at frame_size (H, W).

    keypoints: (33, 2), x and y in [0, 1] of the frame's width and height, in the order of
      LANDMARKS. Joints may lie outside the frame: what is outside is cut off. A joint with a NaN is
      missing: lines that end in it are left out, and the head sits at the mean of its joints that
      are there.
    visibility: (33,) in [0, 1], or None for all visible; below min_visibility a joint is missing.
    style: line_width and head_radius in units of the frame's width; the picture is drawn `oversampling` times
      larger and averaged down over areas.

    Raises ValueError where a shape is wrong.
    """
    if keypoints.shape != (len(LANDMARKS), 2):
        raise ValueError(f"keypoints must have shape ({len(LANDMARKS)}, 2), got {keypoints.shape}")
    if visibility is not None and visibility.shape != (len(LANDMARKS),):
        raise ValueError(f"visibility must have shape ({len(LANDMARKS)},), got {visibility.shape}")
    height, width = frame_size
    line_width, head_radius, oversampling = dataclasses.astuple(style)
    large = (width * oversampling, height * oversampling)
    present = np.isfinite(keypoints).all(axis=1)
    if visibility is not None:
        present &= visibility >= min_visibility
    # Pillow puts integer coordinates in the middle of a pixel: the frame's edge lies at -0.5.
    points = {
        name: tuple(keypoints[i].astype(np.float64) * large - 0.5)
        for i, name in enumerate(LANDMARKS)
        if present[i]
    }

    canvas = Image.new("RGB", large)
    draw = ImageDraw.Draw(canvas)
    thickness = max(1, round(line_width * large[0]))
    for limb in LIMBS:
        for start, end in zip(limb.joints, limb.joints[1:]):
            if start in points and end in points:
                draw.line((points[start], points[end]), fill=limb.color, width=thickness)
                _disc(draw, points[start], thickness / 2, limb.color)
                _disc(draw, points[end], thickness / 2, limb.color)
    head = [points[name] for name in HEAD_JOINTS if name in points]
    if head:
        center = tuple(np.mean(head, axis=0))
        _disc(draw, center, head_radius * large[0], HEAD_COLOR)
    return np.asarray(canvas.reduce(oversampling))


def _disc(
    draw: ImageDraw.ImageDraw,
    center: tuple[float, ...],
    radius: float,
    color: tuple[int, int, int],
) -> None:
    x, y = center
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
