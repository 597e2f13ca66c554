"""A user's own video, made into a data set by prepare.py.

The folder holds a TFDS data set, `preparation.json` (how it was made, splits, keypoints) and a contact sheet.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cvae_jax.data import pose, store
from cvae_jax.data.clips import Recording
from cvae_jax.data.contents import RECORD_FRAMES, Contents
from cvae_jax.data.dataset import DataSet, Poses
from cvae_jax.runtime.errors import UserError

FORMAT = 1  # goes up when the folder's contents change
PREPARATION = "preparation.json"
CONTACT_SHEET = "contact_sheet.png"


def make_contents(
    *,
    scene: str,
    stretches: dict[str, list[tuple[str, int, int]]],
    frames: Iterator[np.ndarray],
    label: Callable[[int], np.ndarray],
    frame_size: tuple[int, int],
) -> Contents:
    """Return what prepare.py writes: a video of one person, cropped around the body, with pose labels.

    stretches: by split, each (name, start, stop) of the clip. frames: uint8 (H, W, 3), each taken once: those
    of all stretches, split after split in the order of `stretches`. label: the label of a frame of the clip.
    """

    def records(split: str) -> Iterator[Recording]:
        for name, begin, end in stretches[split]:
            for start in range(begin, end, RECORD_FRAMES):
                stop = min(start + RECORD_FRAMES, end)
                yield Recording(
                    scene=scene,
                    name=name,
                    start=start,
                    frames=np.stack([next(frames) for _ in range(start, stop)]),
                    labels=np.stack([label(t) for t in range(start, stop)]),
                )

    return Contents(
        name="prepared",
        description="A video of one person, cropped around the body, with pose labels.",
        frame_size=frame_size,
        splits=tuple(stretches),
        records=records,
    )


def load(
    *, data_dir: str | None, cache_dir: str, frame_size: tuple[int, int] | None, options: None = None
) -> dict[str, list[Recording]]:
    """Return the recordings of a folder that prepare.py has written; cache_dir is not used.

    Raises UserError where there is no such folder, it is damaged or of another version, or frames of
    another size than its own are asked for.
    """
    own = read_frame_size(data_dir)
    assert data_dir is not None, "refused by read_frame_size"
    if frame_size is not None and tuple(frame_size) != own:
        raise UserError(
            f"The data set in {data_dir} has frames of {own} (height, width) and frame size "
            f"{tuple(frame_size)} was asked for: leave out --config.data.frame_size, or prepare it again "
            f"with --frame_size={frame_size[0]},{frame_size[1]}."
        )
    try:
        return store.read(pathlib.Path(data_dir))
    except store.UnreadableError as error:
        raise UserError(f"The data set in {data_dir} cannot be read ({error}): prepare it again.") from error


def read_preparation(data_dir: str | None) -> dict[str, Any]:
    """How a folder was prepared: the contents of its preparation.json.

    Raises UserError where no folder is given, it is not a prepared one, or it has another version.
    """
    if not data_dir:
        raise UserError(
            "The data set prepared needs a folder and none was given: add --config.data.dir=FOLDER, the "
            "--out of prepare.py."
        )
    path = pathlib.Path(data_dir) / PREPARATION
    if not pathlib.Path(data_dir).is_dir():
        raise UserError(f"The data folder {data_dir} does not exist: correct --config.data.dir.")
    if not path.is_file():
        raise UserError(
            f"The folder {data_dir} was not made by prepare.py (it has no {PREPARATION}): give its --out as "
            "--config.data.dir."
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = int(stored["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read (damaged): prepare it again.") from error
    if version != FORMAT:
        age = "an older" if version < FORMAT else "a newer"
        raise UserError(
            f"The data set in {data_dir} was written by {age} version of prepare.py (format {version}, this "
            f"is {FORMAT}): prepare it again."
        )
    return stored


def read_frame_size(data_dir: str | None) -> tuple[int, int]:
    """Return (H, W) of a prepared folder's frames; raises UserError as `read_preparation` does."""
    return tuple(read_preparation(data_dir)["frame_size"])


def read_keypoints(data_dir: str | None) -> dict[str, np.ndarray]:
    """The keypoints that the labels were drawn from, by scene: float64 (T, 33, 2) of the whole clip.

    x and y in [0, 1] of the frame's width and height, in the order of pose.LANDMARKS; NaN where not known,
    as in frames that are in no recording. Raises UserError as `read_preparation` does.
    """
    stored = read_preparation(data_dir)
    rows = [pose.landmark_index(name) for name in stored["landmarks"]]
    keypoints = np.full((stored["num_frames"], len(pose.LANDMARKS), 2), np.nan)
    for recording in stored["recordings"]:
        known = np.array(recording["keypoints"], np.float64)  # null is NaN
        keypoints[recording["start"] : recording["start"] + len(known), rows] = known
    return {stored["scene"]: keypoints}


def is_prepared(folder: pathlib.Path) -> bool:
    """Whether a folder is one that prepare.py has written, of whatever version."""
    return (folder / PREPARATION).is_file() and (folder / "dataset_info.json").is_file()


DATA_SET = DataSet(
    load=load,
    image_labels=True,
    default_frame_size=read_frame_size,
    poses=lambda data_dir, **_: Poses.of_scenes(lambda: read_keypoints(data_dir)),
)
