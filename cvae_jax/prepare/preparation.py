"""From a video to a data set: the whole way, in order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import cvae_jax
from cvae_jax.data import store
from cvae_jax.data.datasets import prepared
from cvae_jax.data.pose import LANDMARKS, USED_LANDMARKS, draw_pose
from cvae_jax.prepare import poses
from cvae_jax.prepare.contact_sheet import Sample, draw_cell, draw_sheet
from cvae_jax.prepare.crop import USED, check_inside, choose_crop, cut_off
from cvae_jax.prepare.footage import Folder, Footage, open_footage
from cvae_jax.prepare.keypoints import read_keypoints
from cvae_jax.prepare.pose_environment import POSE
from cvae_jax.prepare.pose_model import PoseModel
from cvae_jax.prepare.settings import Box, Settings, check_out, check_writable
from cvae_jax.prepare.split import Stretch, divide, runs
from cvae_jax.prepare.timing import Timing, resample
from cvae_jax.prepare.track import find_person
from cvae_jax.runtime import cli
from cvae_jax.runtime.errors import UserError

DECIMALS = 4  # of a keypoint in [0, 1]
SAMPLES = 12  # in the contact sheet
NOTABLE = 0.02  # share of the frames in which the body may leave the crop without a word


@dataclasses.dataclass(frozen=True)
class Clip:
    """A resampled video with its poses.

    landmarks: float64 (T, 33, 2) in pixels of the video; keypoints: the same in [0, 1] of the frame, NaN
    where not known. missing: frames in which nobody was seen, before gaps were closed.
    """

    footage: Footage
    timing: Timing
    landmarks: np.ndarray
    keypoints: np.ndarray
    missing: np.ndarray
    crop: Box
    frame_size: tuple[int, int]
    stretches: list[Stretch]


def prepare(settings: Settings) -> Iterator[str]:
    """Make a video into a data set in settings.out; yields what the user should know, line by line.

    Raises UserError for whatever is wrong with the video, the keypoints, the settings or the folder; nothing
    is written then.
    """
    out = Path(settings.out)
    check_out(out, settings.overwrite, prepared.is_prepared(out))
    check_writable(out)
    clip = find_clip(settings)
    yield from report(clip)
    write(clip, settings)
    yield f"Look at {out / prepared.CONTACT_SHEET}; then train:"
    yield f"{cli.command('train')} --config=configs/own_video.py {quoted_flag(out)}"


def quoted_flag(out: Path) -> str:
    """Return the flag that names a prepared data set, for a shell."""
    return shlex.quote(f"--config.data.dir={out}")


def find_clip(settings: Settings) -> Clip:
    """Read the video, find or read the poses, choose crop, size and splits; writes nothing."""
    footage = open_footage(Path(settings.video), settings.source_fps)
    timing = resample(footage, settings.fps, settings.start, settings.end)
    nothing = np.full((1, len(LANDMARKS), 2), np.nan)
    region = (0, 0, *footage.size)
    if settings.crop is not None:
        check_inside(settings.crop, footage.size)
        region, _ = choose_crop(nothing, footage.size, settings.crop, 0.0, settings.frame_size)
    if settings.keypoints is not None:
        path = Path(settings.keypoints)
        found = read_keypoints(path, len(footage.times), footage.size)[timing.indices]
        if not poses.seen(found).any():
            raise UserError(f"{path} shows nobody in any frame that is kept: give keypoints of this video.")
    else:
        with PoseModel(POSE.python()) as model:
            found = find_person(footage, timing, model, region)
        if not poses.seen(found).any():
            raise UserError(
                f"No person was found for certain in {footage.path}: give a video that shows one from "
                "head to foot, --crop=x0,y0,x1,y1 around a small one, or --keypoints=FILE."
            )
    missing = ~poses.seen(found)
    found[missing] = np.nan
    landmarks = poses.fill(found, round(settings.max_gap * timing.fps))
    known = poses.seen(landmarks)
    for start, stop in runs(known):
        landmarks[start:stop] = poses.steady(landmarks[start:stop])
    stretches = divide(known, settings.validation, settings.test)
    inside = np.concatenate([landmarks[s.start : s.stop] for s in stretches])
    crop, frame_size = choose_crop(inside, footage.size, settings.crop, settings.margin, settings.frame_size)
    sides = np.array((crop[2] - crop[0], crop[3] - crop[1]))
    keypoints = np.round((landmarks - crop[:2]) / sides, DECIMALS)
    return Clip(footage, timing, landmarks, keypoints, missing, crop, frame_size, stretches)


def report(clip: Clip) -> Iterator[str]:
    """Yield what was found, line by line."""
    width, height = clip.footage.size
    rows, columns = clip.frame_size
    yield (
        f"{clip.footage.path}: {len(clip.timing)} frames of {width} x {height} at {clip.timing.fps:.4g} a "
        f"second, crop {','.join(map(str, clip.crop))}, frames of {columns} x {rows}."
    )
    kept = np.zeros(len(clip.timing), bool)
    for stretch in clip.stretches:
        kept[stretch.start : stretch.stop] = True
    if clip.missing.any():
        closed = int((clip.missing & kept).sum())
        yield (
            f"Nobody was seen in {int(clip.missing.sum())} frames ({_spans(clip.missing, clip.timing)}): in "
            f"{closed} of them the pose is interpolated, the others are left out."
        )
    for split in dict.fromkeys(s.split for s in clip.stretches):
        own = [s for s in clip.stretches if s.split == split]
        frames = sum(s.stop - s.start for s in own)
        yield f"{split}: {frames} frames in {len(own)} recording{'s' if len(own) > 1 else ''}."
    share = cut_off(clip.landmarks[kept], clip.crop, clip.footage.size)
    if share > NOTABLE:
        larger = f"another aspect may hold it, as --frame_size={max(rows, columns)},{max(rows, columns)}"
        yield f"The body leaves the crop in {share:.0%} of the frames: {larger}, or a larger --crop."


def _spans(missing: np.ndarray, timing: Timing) -> str:
    spans = [
        f"{timing.times[a]:.2f} s" if b - a == 1 else f"{timing.times[a]:.2f}-{timing.times[b - 1]:.2f} s"
        for a, b in runs(missing)
    ]
    return ", ".join(spans[:5]) + (f" and {len(spans) - 5} more" if len(spans) > 5 else "")


def write(clip: Clip, settings: Settings) -> None:
    """Write the data set, preparation.json and the contact sheet, all at once."""
    out = Path(settings.out)
    described = describe(clip, settings)
    frames = _Frames(clip)
    splits: dict[str, list[tuple[str, int, int]]] = {}
    for stretch in clip.stretches:
        splits.setdefault(stretch.split, []).append(stretch[1:])

    def add(folder: Path) -> None:
        text = json.dumps(described, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        (folder / prepared.PREPARATION).write_text(text + "\n", encoding="utf-8")
        draw_sheet(frames.cells).save(folder / prepared.CONTACT_SHEET, optimize=True)

    try:
        store.prepare(
            out,
            prepared.make_contents(
                scene=described["scene"],
                stretches=splits,
                frames=iter(frames),
                label=frames.label,
                frame_size=clip.frame_size,
            ),
            "--out",
            add=add,
            overwrite=settings.overwrite,
        )
    except FileExistsError as error:
        raise UserError(
            f"{out} has been written by another program meanwhile: give --out another folder."
        ) from error


class _Frames:
    """The prepared frames of all recordings, once, in the order of time; a few are kept for the sheet."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.cells: list[Image.Image] = []
        self._names = [(t, s.name) for s in clip.stretches for t in range(s.start, s.stop)]

    def __iter__(self) -> Iterator[np.ndarray]:
        moments = np.array([t for t, _ in self._names])
        sampled = set(np.linspace(0, len(moments) - 1, SAMPLES).round().astype(int).tolist())
        pictures = self.clip.footage.pictures(self.clip.timing.indices[moments])
        bar = tqdm(pictures, desc="Writing", total=len(moments), unit="frame", file=sys.stderr, leave=False)
        for number, picture in enumerate(bar):
            frame = _cut(picture, self.clip.crop, self.clip.frame_size)
            if number in sampled:
                self._keep(picture, frame, *self._names[number])
            yield frame

    def label(self, t: int) -> np.ndarray:
        """Return the label of frame t of the clip, uint8 (H, W, 3)."""
        return draw_pose(self.clip.keypoints[t], frame_size=self.clip.frame_size)

    def _keep(self, picture: Image.Image, frame: np.ndarray, t: int, name: str) -> None:
        caption = f"{self.clip.timing.times[t]:.2f} s, {name}"
        sample = Sample(picture, self.clip.landmarks[t], frame, self.label(t), caption)
        self.cells.append(draw_cell(sample, self.clip.crop))


def _cut(picture: Image.Image, crop: Box, frame_size: tuple[int, int]) -> np.ndarray:
    """Return a frame uint8 (H, W, 3): means over areas, or bilinear where the crop is smaller than it."""
    height, width = frame_size
    smaller = crop[2] - crop[0] < width or crop[3] - crop[1] < height
    how = Image.Resampling.BILINEAR if smaller else Image.Resampling.BOX
    return np.asarray(picture.resize((width, height), how, box=crop))


def describe(clip: Clip, settings: Settings) -> dict[str, Any]:
    """Return the contents of preparation.json."""
    source = clip.footage.path.absolute()
    recordings = [
        {
            "name": s.name,
            "split": s.split,
            "start": s.start,
            "stop": s.stop,
            "keypoints": _plain(clip.keypoints[s.start : s.stop, USED]),
        }
        for s in clip.stretches
    ]
    return {
        "format": prepared.FORMAT,
        "about": "keypoints are x and y in [0, 1] of the crop's width and height, start and stop are frames "
        "of the resampled clip, crop is x0, y0, x1, y1 in video pixels",
        "program": f"cvae_jax {cvae_jax.__version__}",
        "source": source.name,
        "source_hash": _hash(clip.footage),
        "source_size": list(clip.footage.size),
        "settings": dataclasses.asdict(settings),
        "scene": source.stem if source.is_file() else source.name,
        "fps": clip.timing.fps,
        "first_second": float(clip.timing.times[0]),
        "num_frames": len(clip.timing),
        "crop": list(clip.crop),
        "frame_size": list(clip.frame_size),
        "frames_without_person": np.flatnonzero(clip.missing).tolist(),
        "landmarks": list(USED_LANDMARKS),
        "recordings": recordings,
    }


def _plain(values: np.ndarray) -> Any:
    return [[[None if np.isnan(v) else float(v) for v in joint] for joint in frame] for frame in values]


def _hash(footage: Footage) -> str:
    """Return BLAKE2b of a video's bytes, or of the bytes of a folder's images one after another."""
    digest = hashlib.blake2b(digest_size=16)
    for path in footage.files if isinstance(footage, Folder) else [footage.path]:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
