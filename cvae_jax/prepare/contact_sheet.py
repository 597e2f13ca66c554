"""A picture to check a prepared data set by eye: where the body was found, what was kept, what was drawn."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from cvae_jax.data.pose import HEAD_COLOR, HEAD_JOINTS, LIMBS, landmark_index
from cvae_jax.prepare.settings import Box
from cvae_jax.report.canvas import BACKGROUND, BAR, GAP, text_width, write

HEIGHT = 256  # of a picture, in pixels
COLUMNS = 3
CROP_COLOR = (255, 255, 0)
SURROUNDINGS = 0.4  # of the crop's longer side, shown on every side of it


class Sample(NamedTuple):
    """A frame of the video, (33, 2) landmarks in its pixels, what was kept of it, its label and its words."""

    picture: Image.Image
    landmarks: np.ndarray
    frame: np.ndarray
    label: np.ndarray
    caption: str


def draw_sheet(cells: list[Image.Image]) -> Image.Image:
    """Return cells in rows."""
    width, height = max(cell.width for cell in cells), cells[0].height
    columns = min(COLUMNS, len(cells))
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("RGB", (columns * (width + 2 * GAP), rows * (height + 2 * GAP)), (BACKGROUND,) * 3)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (column * (width + 2 * GAP) + GAP, row * (height + 2 * GAP) + GAP))
    return sheet


def _around(crop: Box, size: tuple[int, int]) -> Box:
    """Return the crop with its surroundings inside a picture of `size` (width, height)."""
    more = round(max(crop[2] - crop[0], crop[3] - crop[1]) * SURROUNDINGS)
    x0, y0, x1, y1 = crop
    return max(0, x0 - more), max(0, y0 - more), min(size[0], x1 + more), min(size[1], y1 + more)


def draw_cell(sample: Sample, crop: Box) -> Image.Image:
    """Return a sample: the video around the crop with its skeleton, the prepared frame, the label."""
    x0, y0, *_ = around = _around(crop, sample.picture.size)
    scale = HEIGHT / (around[3] - y0)
    size = (max(1, round((around[2] - x0) * scale)), HEIGHT)
    shown = sample.picture.resize(size, Image.Resampling.BILINEAR, box=around, reducing_gap=2.0)
    _draw_body(shown, (sample.landmarks - (x0, y0)) * scale)
    corners = [round((v - low) * scale) for v, low in zip(crop, (x0, y0) * 2, strict=True)]
    corners[2:] = (min(corners[2], size[0]) - 1, min(corners[3], size[1]) - 1)
    ImageDraw.Draw(shown).rectangle(corners, outline=CROP_COLOR, width=2)
    parts = [shown, *(_enlarged(image) for image in (sample.frame, sample.label))]
    inner = sum(part.width for part in parts) + GAP * (len(parts) - 1)
    cell = Image.new("RGB", (max(inner, text_width(sample.caption)), BAR + HEIGHT), (BACKGROUND,) * 3)
    write(cell, cell.width // 2, BAR // 2, sample.caption)
    left = (cell.width - inner) // 2
    for part in parts:
        cell.paste(part, (left, BAR))
        left += part.width + GAP
    return cell


def _enlarged(image: np.ndarray) -> Image.Image:
    height, width, _ = image.shape
    return Image.fromarray(image).resize(
        (max(1, round(width * HEIGHT / height)), HEIGHT), Image.Resampling.NEAREST
    )


def _draw_body(picture: Image.Image, landmarks: np.ndarray) -> None:
    draw = ImageDraw.Draw(picture)
    points = {i: tuple(point) for i, point in enumerate(landmarks.tolist()) if np.isfinite(point).all()}
    for limb in LIMBS:
        rows = [landmark_index(name) for name in limb.joints]
        for start, end in zip(rows, rows[1:]):
            if start in points and end in points:
                draw.line((points[start], points[end]), fill=limb.color, width=2)
    for name in HEAD_JOINTS:
        if landmark_index(name) in points:
            x, y = points[landmark_index(name)]
            draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=HEAD_COLOR)
