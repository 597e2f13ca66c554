"""What the page knows of a run's data: people to begin from, labels to play, frames to compare with."""

from __future__ import annotations

import base64
import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from cvae_jax.data.clips import Recording
from cvae_jax.data.dataset import Poses
from cvae_jax.data.pose import HEAD_COLOR, HEAD_JOINTS, LIMBS, USED_LANDMARKS, PoseStyle, landmark_index
from cvae_jax.generation.transfer import scene_stance

MOST_SCENES = 8  # of a data set, in the page
MOST_FRAMES = 300  # training frames of a scene that the page compares with, spread evenly
COLUMNS = 20  # of the sheets of these frames
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
    """Return the scenes of a data set, at most MOST_SCENES; first those where the labels draw most.

    With labels that are poses these are the largest people, who are the easiest to move. Clips are those of
    the validation and test splits, or of the training split where a scene is in no other.
    """
    names = sorted({recording.scene for split in data.values() for recording in split})
    found = []
    for name in names[:MOST_SCENES]:
        own = {
            split: [(r, index) for index, r in enumerate(data.get(split, [])) if r.scene == name]
            for split in ("validation", "test", "train")
        }
        held_out = own["validation"] + own["test"]
        clips = held_out or own["train"]
        train = tuple(recording for recording, _ in own["train"])
        first, index = clips[0]
        found.append(SceneOfPage(name, first, index, tuple(r for r, _ in clips), train))
    return sorted(
        found, key=lambda scene: -np.mean(scene.first.labels > 0) if scene.first.image_labels else 0
    )


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
        "limbs": [
            {"name": limb.name, "joints": [number[name] for name in limb.joints], "color": limb.color}
            for limb in LIMBS
        ],
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
            clip["keypoints"] = packed(poses.keypoints(recording)[:, ROWS].astype(np.float32))
        elif kind == "image":
            clip["labels"] = sheet(recording.labels, lossless=True)
        elif kind == "vector":
            clip["labels"] = packed(recording.labels)
        described["clips"].append(clip)
    if kind in ("pose", "image") and scene.train:
        frames = np.concatenate([recording.frames for recording in scene.train])
        labels = np.concatenate([recording.labels for recording in scene.train])
        shown = np.unique(np.linspace(0, len(frames) - 1, min(MOST_FRAMES, len(frames))).round().astype(int))
        described["train"] = {
            "count": len(shown),
            "of": len(frames),
            "frames": sheet(frames[shown], lossless=False),
            "labels": sheet(labels[shown], lossless=True),
        }
    return described


def packed(array: np.ndarray) -> dict[str, Any]:
    """Return an array as JSON: its shape, dtype and little-endian bytes in base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "data": base64.b64encode(little.tobytes()).decode(),
    }


def sheet(images: np.ndarray, lossless: bool) -> dict[str, Any]:
    """Return images uint8 (N, H, W, 3) side by side, as a WebP in a data URL, with the number of columns."""
    count, height, width, _ = images.shape
    rows = -(-count // COLUMNS)
    filled = np.concatenate([images, np.zeros((rows * COLUMNS - count, *images.shape[1:]), np.uint8)])
    joined = filled.reshape(rows, COLUMNS, height, width, 3).swapaxes(1, 2)
    file = io.BytesIO()
    image = Image.fromarray(joined.reshape(rows * height, COLUMNS * width, 3))
    image.save(file, "WEBP", lossless=lossless, quality=100 if lossless else QUALITY)
    return {
        "columns": COLUMNS,
        "count": count,
        "url": "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode(),
    }
