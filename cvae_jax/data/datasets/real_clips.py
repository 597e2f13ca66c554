"""The embedded real clips: five short videos of people moving, with drawn pose labels.

Where they come from and under which licence: `real_clips/LICENSE.txt`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from cvae_jax.data import pose
from cvae_jax.data.clips import Recording
from cvae_jax.data.contents import Contents
from cvae_jax.data.dataset import DataSet, Poses
from cvae_jax.data.store import load_prepared
from cvae_jax.runtime.errors import UserError

STRIPS = pathlib.Path(__file__).parent / "real_clips"
FRAME_SIZE = (64, 32)


class Stretch(NamedTuple):
    """Frames start to stop (excluded) of a clip, all in one split."""

    clip: str
    split: str
    start: int
    stop: int


# Split by time: the four cameras see the same movement, so a split by camera would test nothing.
STRETCHES = (
    Stretch("star_jump", "train", 0, 40),
    Stretch("star_jump", "validation", 40, 72),  # the second of two jumps
    Stretch("star_jump", "train", 72, 116),
    *(Stretch(f"beam_cam{camera}", "train", 0, 80) for camera in (1, 2, 3, 4)),
    *(Stretch(f"beam_cam{camera}", "validation", 80, 100) for camera in (1, 2, 3, 4)),
)


def read_stretches(split: str) -> Iterator[Recording]:
    """Yield the split's stretches."""
    for stretch in STRETCHES:
        if stretch.split == split:
            part = slice(stretch.start, stretch.stop)
            yield Recording(
                scene=stretch.clip,
                name=f"{stretch.clip}_{stretch.start:03d}",
                start=stretch.start,
                frames=read_strip(f"{stretch.clip}_frames.png")[part],
                labels=read_strip(f"{stretch.clip}_labels.png")[part],
            )


def read_strip(name: str) -> np.ndarray:
    """A committed film-strip as uint8 (T, 64, 32, 3), the black cells of its last row included."""
    height, width = FRAME_SIZE
    with Image.open(STRIPS / name) as image:
        strip = np.asarray(image)
    rows, columns = strip.shape[0] // height, strip.shape[1] // width
    cells = strip.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4)
    return cells.reshape(rows * columns, height, width, 3)


@functools.cache
def read_keypoints() -> dict[str, np.ndarray]:
    """The keypoints that the labels were drawn from, by scene: float64 (T, 33, 2) of the whole clip.

    x and y in [0, 1] of the frame's width and height, in the order of pose.LANDMARKS; NaN where a label
    uses none.
    """
    stored = json.loads((STRIPS / "keypoints.json").read_text(encoding="utf-8"))
    rows = [pose.landmark_index(name) for name in stored["landmarks"]]
    found = {}
    for scene, clip in stored["clips"].items():
        known = np.array(clip["keypoints"])
        found[scene] = np.full((len(known), len(pose.LANDMARKS), 2), np.nan)
        found[scene][:, rows] = known
    return found


def load(
    *, data_dir: str | None, cache_dir: str, frame_size: tuple[int, int] | None, options: None = None
) -> dict[str, list[Recording]]:
    """The embedded clips, split by time; frame_size is (64, 32), which None also means.

    Raises UserError for a data_dir (the clips are part of the package), for another frame size,
    and where cache_dir cannot be written.
    """
    if data_dir:
        raise UserError(
            f"The data set real_clips is part of the program and reads no folder, but {data_dir} "
            "was given: add --config.data.name=frame_folder to read that folder."
        )
    if frame_size is not None and tuple(frame_size) != FRAME_SIZE:
        raise UserError(
            f"The data set real_clips has frames of (64, 32) (height, width) and frame size "
            f"{tuple(frame_size)} was asked for: leave out --config.data.frame_size."
        )
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(STRIPS.glob("*.png")):
        digest.update(path.read_bytes())
    digest.update(repr(STRETCHES).encode())
    contents = Contents(
        name="real_clips",
        description=(
            "One star jumper and one man on a beam seen by four cameras; 32 x 64 pixels, pose labels."
        ),
        license="BSD-3-Clause",
        frame_size=FRAME_SIZE,
        records=read_stretches,
    )
    return load_prepared(cache_dir, digest.hexdigest(), contents)


DATA_SET = DataSet(
    load=load,
    image_labels=True,
    default_frame_size=lambda data_dir: FRAME_SIZE,
    poses=lambda **_: Poses.of_scenes(read_keypoints),
)
