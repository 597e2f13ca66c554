"""Finds the person of a video in two passes, and refuses a second one.

The first pass looks at the whole picture, and at windows of half its size where that shows nobody: the
model misses people who are small in the picture. The second looks around the person, four times a frame.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from cvae_jax.data.pose import landmark_index
from cvae_jax.prepare.crop import USED
from cvae_jax.prepare.footage import Footage
from cvae_jax.prepare.pose_model import Look, PoseModel
from cvae_jax.prepare.poses import merge_looks
from cvae_jax.prepare.settings import Box
from cvae_jax.prepare.timing import Timing
from cvae_jax.runtime.errors import UserError

WHOLE_SIDE = 640  # longer side of what the model is given of the whole picture, in pixels
CLOSE_SIDE = 448
MARGINS = (1.35, 1.8)  # sides of the second pass's two squares, in longer sides of the body
NEIGHBOURS = 2  # frames before and after whose bodies count as well
SEARCH_EVERY = 1 / 3  # seconds between frames whose windows are searched
TRUST = 1.0  # seconds from the nearest sighting of pass one in which pass two looks
SAMPLES = 8  # frames in which a second person is looked for
SURE = 0.7  # visibility of the joints that make a whole body
SMALLEST_OTHER = 1 / 3  # height of a second person who counts, of the first's
_WHOLE_BODY = [
    landmark_index(f"{side}_{joint}")
    for joint in ("shoulder", "hip", "knee", "ankle")
    for side in ("left", "right")
]
_TRUNK = _WHOLE_BODY[:4]


def find_person(footage: Footage, timing: Timing, model: PoseModel, region: Box) -> np.ndarray:
    """Return landmarks float64 (T, 33, 2) in pixels of the video, NaN where nobody is seen.

    region: the part of the picture in which the person is. Raises UserError where there is nobody at all,
    or where there are two.
    """
    first = _first_pass(footage, timing, model, region)
    if not np.isfinite(first).any():
        where = "" if region == (0, 0, *footage.size) else f" in the crop {','.join(map(str, region))}"
        raise UserError(
            f"No person was found in {footage.path}{where}: give a video that shows one from head to foot, "
            "--crop=x0,y0,x1,y1 around a small one, or --keypoints=FILE."
        )
    _refuse_second(footage, timing, model, region, first)
    return _second_pass(footage, timing, model, region, first)


def _first_pass(footage: Footage, timing: Timing, model: PoseModel, region: Box) -> np.ndarray:
    """Return one look a frame, (T, 33, 3) in pixels and visibility, NaN where it shows nobody."""
    whole = Look(region, region, WHOLE_SIDE)
    found = np.stack(
        list(
            model.map(
                lambda picture: model.look(picture, whole),
                _shown(footage, timing.indices, "Looking for the person"),
            )
        )
    )
    missing = np.flatnonzero(np.isnan(found).any(axis=(1, 2)))
    every = max(1, round(SEARCH_EVERY * timing.fps))
    searched = missing[missing % every == 0]
    if not len(searched):
        return found
    pictures = _shown(footage, timing.indices[searched], "Looking closer")
    for t, looks in zip(
        searched, model.map(lambda p: _look_through(model, p, region), pictures), strict=True
    ):
        bodies = [look for look in looks if whole_body(look, region)]
        if bodies:
            found[t] = max(bodies, key=lambda body: body[USED, 2].mean())
    return found


def _second_pass(
    footage: Footage, timing: Timing, model: PoseModel, region: Box, first: np.ndarray
) -> np.ndarray:
    """Return one body a frame (T, 33, 2), NaN where none is seen or its middle is outside the region."""
    places, wanted = squares(first, round(TRUST * timing.fps))
    pictures = _shown(footage, timing.indices[wanted], "Finding the pose")

    def work(job: tuple[Image.Image, np.ndarray]) -> np.ndarray:
        picture, (x, y, side) = job
        looks = []
        for margin in MARGINS:
            half = side * margin / 2
            box = (float(x - half), float(y - half), float(x + half), float(y + half))
            looks += [model.look(picture, Look(box, region, CLOSE_SIDE, m)) for m in (False, True)]
        return np.stack(looks)

    looks = np.full((len(timing), 2 * len(MARGINS), *first.shape[1:]), np.nan)
    jobs = zip(pictures, places[wanted], strict=True)
    for t, seen in zip(wanted, model.map(work, jobs), strict=True):
        looks[t] = seen
    bodies = merge_looks(looks[..., :2])
    middle = bodies[:, _TRUNK].mean(axis=1)
    bodies[~((middle >= region[:2]) & (middle <= region[2:])).all(axis=1)] = np.nan
    return bodies


def squares(first: np.ndarray, trust: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the second pass looks: (T, 3) centre and longer side of the body, and the frames' indices.

    first: (T, 33, 3). Between sightings places are interpolated; frames more than `trust` away are left out.
    """
    known = np.flatnonzero(np.isfinite(first).all(axis=(1, 2)))
    points = first[known][:, USED, :2]
    low, high = points.min(axis=1), points.max(axis=1)
    near = np.abs(known[:, None] - known) <= NEIGHBOURS
    low = np.stack([low[row].min(axis=0) for row in near])
    high = np.stack([high[row].max(axis=0) for row in near])
    values = np.concatenate([(low + high) / 2, (high - low).max(axis=1, keepdims=True)], axis=1)
    moments = np.arange(len(first))
    places = np.stack([np.interp(moments, known, column) for column in values.T], axis=1)
    right = np.clip(np.searchsorted(known, moments), 0, len(known) - 1)
    away = np.minimum(np.abs(known[right] - moments), np.abs(known[np.maximum(right - 1, 0)] - moments))
    return places, np.flatnonzero(away <= trust)


def _refuse_second(
    footage: Footage, timing: Timing, model: PoseModel, region: Box, first: np.ndarray
) -> None:
    """Raise UserError where two sampled frames show another whole body with the person blanked out."""
    known = np.flatnonzero(np.isfinite(first).all(axis=(1, 2)))
    sampled = np.unique(known[np.linspace(0, len(known) - 1, SAMPLES).round().astype(int)])

    def others(job: tuple[Image.Image, np.ndarray]) -> bool:
        picture, body = job
        points = body[USED, :2]
        low, high = points.min(axis=0), points.max(axis=0)
        height = high[1] - low[1]
        blanked = picture.copy()
        gray = tuple(int(v) for v in np.asarray(picture.resize((1, 1), Image.Resampling.BOX))[0, 0])
        box = (*(low - 0.15 * height), *(high + 0.15 * height))
        ImageDraw.Draw(blanked).rectangle([float(v) for v in box], fill=gray)
        return any(
            whole_body(look, region) and np.ptp(look[USED, 1]) > SMALLEST_OTHER * height
            for look in _look_through(model, blanked, region)
        )

    pictures = _shown(footage, timing.indices[sampled], "Looking for others")
    jobs = zip(pictures, first[sampled], strict=True)
    with_other = [t for t, found in zip(sampled, model.map(others, jobs), strict=True) if found]
    if len(with_other) >= 2:
        raise UserError(
            f"{footage.path} shows more than one person, as at {timing.times[with_other[0]]:.1f} s: give "
            "--crop=x0,y0,x1,y1 (pixels) around one, or --start and --end (seconds) while one is alone."
        )


def whole_body(body: np.ndarray, region: Box) -> bool:
    """Whether a look (33, 3) shows a body from shoulders to ankles, surely and inside the region."""
    joints = body[_WHOLE_BODY]
    inside = (joints[:, :2] >= region[:2]).all() and (joints[:, :2] <= region[2:]).all()
    return bool(inside and np.isfinite(joints).all() and (joints[:, 2] >= SURE).mean() >= 0.75)


def _look_through(model: PoseModel, picture: Image.Image, region: Box) -> list[np.ndarray]:
    """Look at a region, again with gray around it, and at nine windows of half its size, half overlapping."""
    x0, y0, x1, y1 = region
    more = max(x1 - x0, y1 - y0) / 4
    around = (x0 - more, y0 - more, x1 + more, y1 + more)
    looks = [model.look(picture, Look(box, region, WHOLE_SIDE)) for box in (region, around)]
    for row in range(3):
        for column in range(3):
            x, y = x0 + column * (x1 - x0) / 4, y0 + row * (y1 - y0) / 4
            box = (x, y, x + (x1 - x0) / 2, y + (y1 - y0) / 2)
            looks.append(model.look(picture, Look(box, region, WHOLE_SIDE)))
    return looks


def _shown(footage: Footage, indices: np.ndarray, title: str) -> Iterator[Image.Image]:
    yield from tqdm(
        footage.pictures(indices), desc=title, total=len(indices), unit="frame", file=sys.stderr, leave=False
    )
