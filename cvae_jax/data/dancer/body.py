"""The skeleton: from a posture to joints in space, and through the camera to keypoints.

Space has x to the camera's right, y up from the floor and z towards the camera, in units of the body's
height. A facing (yaw) of 0 looks into the camera and grows to the person's left.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from cvae_jax.data.dancer.choreography import Foot, Posture
from cvae_jax.data.dancer.moves import LEFT
from cvae_jax.data.pose import LANDMARKS, USED_LANDMARKS, landmark_index

SIDES = ("left", "right")
THIGH, SHIN, UPPER_ARM, FOREARM = 0.245, 0.235, 0.165, 0.145
ANKLE = 0.045  # height of the ankle over the sole
REACH = 0.995 * (THIGH + SHIN)  # hip to ankle, the knee not quite straight
HIP_WIDTH, SHOULDER_WIDTH = 0.058, 0.112  # from the middle
SPINE, NECK, HEAD = 0.295, 0.325, 0.405  # above the hips: shoulders, neck, middle of the head
HEAD_HEIGHT, HEAD_WIDTH, HEAD_DEPTH = 0.064, 0.047, 0.056  # half axes
# What the dancer needs over and under the middle of the floor and to either side of its place.
ABOVE, BELOW, BESIDE = 1.26, 0.08, 0.57
LEAST_ROOM, MOST_ROOM = 0.03, 0.5
TILT = 0.16  # radians by which the camera looks down


@dataclasses.dataclass(frozen=True)
class Body:
    """Joints in space, (3,) each, by their names in LANDMARKS (hands, neck and head besides), and frames.

    The columns of a frame (3, 3) point to the person's left, up and forwards.
    """

    joints: dict[str, np.ndarray]
    pelvis: np.ndarray
    torso: np.ndarray
    head: np.ndarray
    hips: np.ndarray  # frame of the hips, upright

    def spine(self, height: float) -> np.ndarray:
        """Return the point of the torso's axis at a height above the hips."""
        return self.pelvis + height * self.torso[:, 1]


def turned(yaw: float) -> np.ndarray:
    """Return the upright frame (3, 3) of a facing."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def tilted(forward: float, left: float) -> np.ndarray:
    """Return the rotation (3, 3), within a frame, that leans it forward and to its left."""
    cf, sf, cl, sl = math.cos(forward), math.sin(forward), math.cos(left), math.sin(left)
    pitch = np.array([[1.0, 0.0, 0.0], [0.0, cf, -sf], [0.0, sf, cf]])
    roll = np.array([[cl, sl, 0.0], [-sl, cl, 0.0], [0.0, 0.0, 1.0]])
    return roll @ pitch


def build(posture: Posture) -> Body:
    """Return the body of a posture: planted feet stay where they are, knees bend forwards."""
    legs = posture.legs
    hips = turned(posture.yaw)
    center = np.array([posture.x, 0.0, posture.depth]) + legs.sway * hips[:, 0]
    sides = [HIP_WIDTH * hips[:, 0], -HIP_WIDTH * hips[:, 0]]
    height = ANKLE + THIGH + SHIN + legs.jump - legs.drop
    for foot, side in zip(posture.feet, sides, strict=True):
        far = math.hypot(center[0] + side[0] - foot.x, center[2] + side[2] - foot.depth)
        room = math.sqrt(max(REACH**2 - far**2, 0.05))
        lift = foot.lift - legs.jump
        height = min(height, ANKLE + foot.lift + room + 10 * max(lift - 0.02, 0.0))
    pelvis = center + np.array([0.0, height, 0.0])
    torso = turned(posture.yaw + legs.twist) @ tilted(legs.bend, legs.lean)
    head = turned(posture.yaw + legs.twist + posture.head_yaw) @ tilted(
        0.4 * legs.bend + posture.head_pitch, 0.6 * legs.lean
    )
    joints = {}
    for index, name in enumerate(SIDES):
        hip = pelvis + sides[index]
        joints[f"{name}_hip"] = hip
        _leg(joints, name, hip, posture.feet[index])
        _arm(joints, name, index, pelvis, torso, posture.arms[index])
    neck = pelvis + NECK * torso[:, 1]
    middle = neck + (HEAD - NECK) * (0.4 * torso[:, 1] + 0.6 * head[:, 1])
    joints["nose"] = middle + head @ np.array([0.0, -0.01, HEAD_DEPTH])
    joints["left_ear"] = middle + head @ np.array([HEAD_WIDTH, 0.0, -0.005])
    joints["right_ear"] = middle + head @ np.array([-HEAD_WIDTH, 0.0, -0.005])
    joints["head"] = middle
    joints["neck"] = neck
    return Body(joints, pelvis, torso, head, hips)


def _leg(joints: dict[str, np.ndarray], name: str, hip: np.ndarray, foot: Foot) -> None:
    ankle = np.array([foot.x, ANKLE + foot.lift, foot.depth])
    way = ankle - hip
    length = math.sqrt(way @ way)
    if length > REACH:
        way *= REACH / length
        ankle, length = hip + way, REACH
    axis = way / length
    forward = turned(foot.yaw)[:, 2]
    # The knee lies off the line from hip to ankle, forwards.
    along = (THIGH**2 - SHIN**2 + length**2) / (2 * length)
    off = math.sqrt(max(THIGH**2 - along**2, 0.0))
    pole = forward + np.array([0.0, 0.35, 0.0])
    pole = pole - (pole @ axis) * axis
    joints[f"{name}_knee"] = hip + along * axis + off * pole / math.sqrt(pole @ pole)
    joints[f"{name}_ankle"] = ankle
    cos, sin = math.cos(foot.point), math.sin(foot.point)
    toes, sole = cos * forward, np.array([0.0, -1.0, 0.0])
    toes = toes + sin * sole
    down = cos * sole - sin * forward
    joints[f"{name}_foot_index"] = ankle + 0.10 * toes + 0.030 * down
    joints[f"{name}_heel"] = ankle - 0.032 * toes + 0.034 * down


def _arm(
    joints: dict[str, np.ndarray],
    name: str,
    index: int,
    pelvis: np.ndarray,
    torso: np.ndarray,
    directions: np.ndarray,
) -> None:
    sign = 1.0 if index == LEFT else -1.0
    mirror = np.array([sign, 1.0, 1.0])
    raised = max(float(directions[0, 1]), 0.0)
    shoulder = pelvis + torso @ np.array(
        [sign * (SHOULDER_WIDTH - 0.015 * raised), SPINE + 0.025 * raised, 0.0]
    )
    upper, fore = (torso @ (mirror * direction) for direction in directions)
    joints[f"{name}_shoulder"] = shoulder
    joints[f"{name}_elbow"] = elbow = shoulder + UPPER_ARM * upper
    joints[f"{name}_wrist"] = wrist = elbow + FOREARM * fore
    joints[f"{name}_hand"] = wrist + 0.045 * fore


class Camera(NamedTuple):
    """A still camera, chosen so that the whole dance fits: pixels per body height, middle, floor, room."""

    frame_size: tuple[int, int]
    scale: float
    middle: float
    floor: float
    room: float  # how far from the middle the dancer may go, in body heights

    @classmethod
    def for_frame(cls, frame_size: tuple[int, int]) -> Camera:
        """Return the camera for frames of (H, W) pixels."""
        height, width = frame_size
        tall = ABOVE + BELOW
        scale = min(height / tall, width / (2 * (BESIDE + LEAST_ROOM)))
        spare = height - tall * scale
        room = min(width / (2 * scale) - BESIDE, MOST_ROOM)
        return cls(frame_size, scale, width / 2, height - BELOW * scale - 0.3 * spare, room)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return pixels (..., 2), x and y from the frame's upper left corner, of points (..., 3)."""
        x = self.middle + self.scale * points[..., 0]
        y = self.floor - self.scale * (math.cos(TILT) * points[..., 1] - math.sin(TILT) * points[..., 2])
        return np.stack([x, y], axis=-1)


def keypoints(body: Body, camera: Camera) -> np.ndarray:
    """Return (33, 2) in [0, 1] of the frame's width and height, NaN for landmarks not in USED_LANDMARKS."""
    points = np.full((len(LANDMARKS), 2), np.nan)
    height, width = camera.frame_size
    pixels = camera.project(np.stack([body.joints[name] for name in USED_LANDMARKS]))
    points[[landmark_index(name) for name in USED_LANDMARKS]] = pixels / np.array([width, height])
    return points
