"""The data stored in the page: scenes to start from, labels to play, and training frames to compare with."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cvae_jax.data.clips import Recording
from cvae_jax.data.dataset import Poses
from cvae_jax.data.pose import HEAD_COLOR, HEAD_JOINTS, LIMBS, USED_LANDMARKS, PoseStyle, landmark_index
from cvae_jax.data.retarget import stance_known
from cvae_jax.generation.transfer import scene_stance
from cvae_jax.runtime.errors import UserError

MOST_SCENES = 8  # of a data set, in the page
MOST_FRAMES = 300  # training frames of a scene that the page compares with, spread evenly
COLUMNS = 20  # of the sheets of these frames, at most
LONGEST_SIDE = 16383  # of a WebP, in pixels
DTYPES = ("float32", "int32", "bool")  # of arrays, in arrays.js
QUALITY = 90  # of the sheets of frames (WebP)
ROWS = [landmark_index(name) for name in USED_LANDMARKS]


@dataclasses.dataclass(frozen=True)
class SceneOfPage:
    """One scene: the recording it begins with, those whose labels can be played, and its training frames."""

    name: str
    first: Recording
    index: int  # of `first` in its split
    clips: tuple[Recording, ...]
    train: tuple[Recording, ...]


def scenes_of(data: dict[str, list[Recording]]) -> list[SceneOfPage]:
    """Return up to MOST_SCENES scenes, held-out ones first and those with the most drawn in their labels.

    For pose labels these are the scenes with the largest people, who are the easiest to move. A scene's clips
    are its validation and test recordings, or its training recordings if it has no others.
    """
    names = sorted({recording.scene for split in data.values() for recording in split})
    found = []
    for name in names:
        own = {
            split: [(r, index) for index, r in enumerate(data.get(split, [])) if r.scene == name]
            for split in ("validation", "test", "train")
        }
        held_out = own["validation"] + own["test"]
        clips = held_out or own["train"]
        train = tuple(recording for recording, _ in own["train"])
        first, index = clips[0]
        drawn = np.mean(first.labels > 0) if first.image_labels else 0.0
        scene = SceneOfPage(name, first, index, tuple(r for r, _ in clips), train)
        found.append(((not held_out, -drawn), scene))
    return [scene for _, scene in sorted(found, key=lambda pair: pair[0])][:MOST_SCENES]


def label_kind(recording: Recording, poses: Poses | None) -> str:
    """Return what labels are: 'pose' (drawn from keypoints), 'image', 'vector' or 'none'."""
    if recording.image_labels:
        return "pose" if poses else "image"
    return "vector" if recording.label_size else "none"


def skeleton(style: PoseStyle) -> dict[str, Any]:
    """Return how a label is drawn of the joints in USED_LANDMARKS; see `cvae_jax.data.pose.draw_pose`."""
    number = {name: row for row, name in enumerate(USED_LANDMARKS)}
    return {
        "joints": list(USED_LANDMARKS),
        "limbs": [{"joints": [number[name] for name in limb.joints], "color": limb.color} for limb in LIMBS],
        "head": [number[name] for name in HEAD_JOINTS],
        "head_color": HEAD_COLOR,
        **dataclasses.asdict(style),
    }


def describe(scene: SceneOfPage, kind: str, poses: Poses | None) -> dict[str, Any]:
    """Return a scene as JSON: its clips with what their labels are, and its training frames as sheets."""
    described: dict[str, Any] = {"name": scene.name, "clips": []}
    if poses:
        stance = scene_stance(poses, (*scene.clips, *scene.train), scene.name)
        described["stance"] = stance and dataclasses.asdict(stance)
    for recording in scene.clips:
        clip: dict[str, Any] = {"name": recording.name, "length": len(recording.frames)}
        if poses:
            keypoints = poses.keypoints(recording)
            clip["transferable"] = bool(stance_known(keypoints).all())
            clip["keypoints"] = packed(keypoints[:, ROWS].astype(np.float32))
        elif kind == "image":
            shown = recording.labels[: _capacity(recording.labels)]
            clip |= {"labels": sheet(shown, lossless=True), "length": len(shown)}
        described["clips"].append(clip)
    if kind in ("pose", "image") and scene.train:
        frames = np.concatenate([recording.frames for recording in scene.train])
        labels = np.concatenate([recording.labels for recording in scene.train])
        shown = np.unique(
            np.linspace(0, len(frames) - 1, min(MOST_FRAMES, _capacity(frames), len(frames)))
            .round()
            .astype(int)
        )
        described["train"] = {
            "count": len(shown),
            "of": len(frames),
            "frames": sheet(frames[shown], lossless=False),
            "labels": sheet(labels[shown], lossless=True),
        }
    return described


def ranges(scenes: Sequence[SceneOfPage]) -> list[list[float]]:
    """Return the least and the largest value of each entry of the clips' labels (vectors), and of 0."""
    labels = np.concatenate([clip.labels for scene in scenes for clip in scene.clips])
    pairs = np.stack([np.minimum(labels.min(axis=0), 0), np.maximum(labels.max(axis=0), 0)], axis=-1)
    return pairs.tolist()


def packed(array: np.ndarray) -> dict[str, Any]:
    """Return an array as JSON: its shape, dtype and little-endian bytes in base64.

    Raises UserError for a dtype that the page does not know.
    """
    if array.dtype.name not in DTYPES:
        raise UserError(
            f"The model's state holds an array of {array.dtype.name}, and the page knows {', '.join(DTYPES)} "
            "only: a model with such a state cannot be exported."
        )
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "data": base64.b64encode(little.tobytes()).decode(),
    }


def sheet(images: np.ndarray, lossless: bool) -> dict[str, Any]:
    """Return images uint8 (N, H, W, 3) side by side, as a WebP in a data URL, with the number of columns."""
    count, height, width, _ = images.shape
    columns = _columns(width)
    rows = -(-count // columns)
    filled = np.concatenate([images, np.zeros((rows * columns - count, *images.shape[1:]), np.uint8)])
    joined = filled.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    file = io.BytesIO()
    image = Image.fromarray(joined.reshape(rows * height, columns * width, 3))
    image.save(file, "WEBP", lossless=lossless, quality=100 if lossless else QUALITY)
    return {
        "columns": columns,
        "count": count,
        "url": "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode(),
    }


def _columns(width: int) -> int:
    return max(1, min(COLUMNS, LONGEST_SIDE // width))


def _capacity(images: np.ndarray) -> int:
    """Return how many of such images (N, H, W, 3) a sheet can hold."""
    return _columns(images.shape[2]) * (LONGEST_SIDE // images.shape[1])
