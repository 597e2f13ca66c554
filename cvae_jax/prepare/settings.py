"""The settings of prepare.py, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from pathlib import Path

from cvae_jax.runtime.errors import UserError

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the video, x1 and y1 excluded

LARGEST_SIDE = 1024  # of a frame, in pixels


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a video is prepared; None is a flag that was not given.

    Attributes:
      video: a video file, a GIF or a folder of numbered frames.
      out: the folder that the data set becomes.
      overwrite: a prepared data set that is at `out` is replaced.
      fps: frames a second of the data set; None: the video's own rate, at most 30.
      source_fps: frames a second of a folder of frames; None: 30.
      start, end: seconds from the first frame; what lies outside is left out. None: the whole video.
      crop: what is kept, in pixels of the video; None: around the body.
      margin: of the body's extent, half of it on either side, where no crop is given.
      frame_size: (H, W); None: (64, 32) where what is kept is taller than wide, else (32, 64).
      keypoints: a file or folder of keypoints found elsewhere; None: they are found here.
      max_gap: seconds without a person up to which the pose is interpolated.
      validation, test: shares of the frames, the last of the video; test may be 0.

    Raises UserError for values out of their range.
    """

    video: str
    out: str
    overwrite: bool = False
    fps: float | None = None
    source_fps: float | None = None
    start: float | None = None
    end: float | None = None
    crop: Box | None = None
    margin: float = 0.2
    frame_size: tuple[int, int] | None = None
    keypoints: str | None = None
    max_gap: float = 1 / 3
    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        for name in ("fps", "source_fps"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 < value <= 1000):
                raise UserError(f"--{name} is {value}; give frames per second, above 0 and at most 1000.")
        for name in ("start", "end", "margin", "max_gap"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"--{name} is {value}; give a finite number, 0 or more.")
        if self.end is not None and self.end <= (self.start or 0):
            raise UserError(f"--end={self.end} is not after --start={self.start or 0}; give a later second.")
        for name, least in (("validation", "above 0"), ("test", "0 or more")):
            value = getattr(self, name)
            if not (0 <= value < 1) or (value == 0 and name == "validation"):
                raise UserError(f"--{name} is {value}; give a share of the frames, {least} and below 1.")
        if self.validation + self.test >= 1:
            raise UserError(
                f"--validation={self.validation} and --test={self.test} leave nothing to train on; "
                "give shares that add up to less than 1."
            )
        if self.crop is not None and not (self.crop[0] < self.crop[2] and self.crop[1] < self.crop[3]):
            raise UserError(
                f"--crop={','.join(map(str, self.crop))} is empty; give x0,y0,x1,y1 with x0 < x1 and y0 < y1."
            )
        if self.frame_size is not None and not all(4 <= side <= LARGEST_SIDE for side in self.frame_size):
            raise UserError(
                f"--frame_size={self.frame_size[0]},{self.frame_size[1]} is out of range; give height and "
                f"width from 4 to {LARGEST_SIDE} pixels."
            )


def numbers(flag: str, text: str | None, names: str) -> tuple[int, ...] | None:
    """Return the whole numbers of a flag like '530,60,750,500'; names: 'x0,y0,x1,y1'. None for None.

    Raises UserError where there are not as many as there are names.
    """
    if text is None:
        return None
    parts = text.strip(" ()").split(",")
    if len(parts) != names.count(",") + 1 or not all(re.fullmatch(r"\s*-?[0-9]+\s*", p) for p in parts):
        raise UserError(f"--{flag}={text} is not {names}; give whole numbers of pixels.")
    return tuple(int(part) for part in parts)


def check_out(out: Path, overwrite: bool, is_prepared: bool) -> None:
    """Raise UserError unless `out` is free, or holds a prepared data set that may be replaced."""
    if out.is_file():
        raise UserError(f"--out={out} is a file; give the name of a new folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not is_prepared:
        raise UserError(
            f"The folder {out} holds something else than a prepared data set; give --out a new folder."
        )
    if not overwrite:
        raise UserError(
            f"The folder {out} holds a prepared data set already; add --overwrite to replace it, or give "
            "--out another folder."
        )


def check_writable(out: Path) -> None:
    """Raise UserError where `out` could not be written, before an hour is spent on it."""
    try:
        existing = out.parent
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"Cannot write to {existing} ({error.strerror}): give --out a folder that can be written."
        ) from error
