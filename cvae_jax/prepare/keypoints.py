"""Poses found elsewhere: MediaPipe's landmarks or OpenPose's BODY_25 and COCO-18, as JSON.

MediaPipe: a list with an entry per frame of the video, null (or []) for nobody, else 33 landmarks, each
{"x": .., "y": ..} or [x, y, ...], in [0, 1] of the picture. OpenPose: a folder of its files, one a frame, or
one file with a list of their contents; coordinates in pixels of the video. A list may stand under "frames".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cvae_jax.data.pose import LANDMARKS, landmark_index
from cvae_jax.prepare.footage import numbered
from cvae_jax.runtime.errors import UserError

FORMS = "MediaPipe's 33 landmarks a frame or OpenPose's BODY_25 or COCO-18"
LEAST_CONFIDENCE = 0.1  # of an OpenPose joint: below it is not known
CLEAR = 0.5  # a person of an OpenPose frame is clear with this share of the joints known, ...
CLEAR_CONFIDENCE = 0.3  # ... and this mean confidence of them
FARTHEST = 10  # heights or widths of the picture: a landmark that far outside was given in pixels

# OpenPose's numbers of our landmarks.
_UPPER = {
    "nose": 0,
    "right_shoulder": 2,
    "right_elbow": 3,
    "right_wrist": 4,
    "left_shoulder": 5,
    "left_elbow": 6,
    "left_wrist": 7,
}
BODY_25 = _UPPER | {
    "right_hip": 9,
    "right_knee": 10,
    "right_ankle": 11,
    "left_hip": 12,
    "left_knee": 13,
    "left_ankle": 14,
    "right_eye": 15,
    "left_eye": 16,
    "right_ear": 17,
    "left_ear": 18,
    "left_foot_index": 19,
    "left_heel": 21,
    "right_foot_index": 22,
    "right_heel": 24,
}
COCO_18 = _UPPER | {
    "right_hip": 8,
    "right_knee": 9,
    "right_ankle": 10,
    "left_hip": 11,
    "left_knee": 12,
    "left_ankle": 13,
    "right_eye": 14,
    "left_eye": 15,
    "right_ear": 16,
    "left_ear": 17,
}


def read_keypoints(path: Path, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """Return landmarks float64 (N, 33, 2) in pixels of the video, NaN where a joint is not known.

    num_frames: N of the video, as many as there must be. size: (width, height) of the video.

    Raises UserError where there is no such file, it is no JSON or of an unknown form, has another number of
    frames, or shows several people in a frame.
    """
    if not path.exists():
        raise UserError(f"There is no file or folder {path}: correct --keypoints.")
    if path.is_dir():
        files = numbered(path, ("_keypoints.json",), "OpenPose files (*_keypoints.json)")
        frames = [_read(file) for file in files]
    else:
        frames = _frames(path, _read(path))
    if len(frames) != num_frames:
        raise UserError(
            f"{path} has keypoints of {len(frames)} frames and the video has {num_frames}: give keypoints of "
            "every frame of this video, null where nobody is seen."
        )
    return np.stack([_body(path, index, frame, size) for index, frame in enumerate(frames)])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable.") from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid JSON ({reason}): write it again.") from error


def _frames(path: Path, content: Any) -> list:
    if isinstance(content, dict) and isinstance(content.get("frames"), list):
        content = content["frames"]
    if not isinstance(content, list):
        raise UserError(f"{path} is not a list of frames: give {FORMS}.")
    return content


def _body(path: Path, index: int, frame: Any, size: tuple[int, int]) -> np.ndarray:
    try:
        if not frame:
            return np.full((len(LANDMARKS), 2), np.nan)
        if isinstance(frame, dict):
            return _open_pose(path, index, frame["people"])
        points = [(p["x"], p["y"]) if isinstance(p, dict) else (p[0], p[1]) for p in frame]
        if len(points) != len(LANDMARKS):
            raise ValueError
        body = np.array(points, np.float64)  # null is NaN
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"Frame {index} of {path} is of an unknown form: give {FORMS}.") from error
    if np.isfinite(body).any() and np.nanmax(np.abs(body)) > FARTHEST:
        raise UserError(
            f"Frame {index} of {path} has landmarks far outside [0, 1]: give x and y in [0, 1] of the "
            "picture's width and height."
        )
    return body * size


def _open_pose(path: Path, index: int, people: list) -> np.ndarray:
    bodies = []
    for person in people:
        joints = np.array(person["pose_keypoints_2d"], np.float64).reshape(-1, 3)
        numbers = {25: BODY_25, 18: COCO_18}[len(joints)]
        joints[joints[:, 2] < LEAST_CONFIDENCE] = np.nan
        bodies.append((joints, numbers))
    clear = [
        (joints, numbers)
        for joints, numbers in bodies
        if np.isfinite(joints[:, 2]).mean() >= CLEAR and np.nanmean(joints[:, 2]) >= CLEAR_CONFIDENCE
    ]
    if len(bodies) > 1 and len(clear) != 1:
        raise UserError(
            f"Frame {index} of {path} has {len(bodies)} people: keep the one who is meant (OpenPose's "
            "--number_people_max 1), or remove the others from the file."
        )
    body = np.full((len(LANDMARKS), 2), np.nan)
    for joints, numbers in clear or bodies:
        for name, number in numbers.items():
            body[landmark_index(name)] = joints[number, :2]
    return body
