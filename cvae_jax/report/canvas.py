"""What pictures and films of videos share: text, sizes, and where videos side by side lie."""

import dataclasses
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Frames = UInt8[np.ndarray, "t h w 3"]

BAR = 22  # height of a line of text, in pixels
GAP = 6  # between neighbouring pictures, in pixels
BACKGROUND = 255
_INK = 0
_FONT = ImageFont.load_default(14)
_COLUMN_SIDE = 256  # about the longer side of a video in an animation, in pixels


@dataclasses.dataclass(frozen=True)
class Columns:
    """Videos side by side, each under its name, with a line below that counts the frames.

    captions: gray picture with the names; count: number of frames; scale: a pixel becomes scale x
    scale; size: (width, height) of an enlarged frame; corners: (x, y) of each video's upper left.
    """

    captions: Image.Image
    count: int
    scale: int
    size: tuple[int, int]
    corners: list[tuple[int, int]]

    @classmethod
    def of(cls, videos: dict[str, Frames], scale: int | None) -> "Columns":
        """Lays out videos; without a scale the longer side becomes about 256 pixels.

        Raises what `check_videos` raises.
        """
        check_videos(videos)
        count, height, width, _ = next(iter(videos.values())).shape
        scale = scale or scale_to(height, width, _COLUMN_SIDE)
        cell = max([width * scale] + [text_width(name) for name in videos])
        canvas_width = len(videos) * (cell + GAP) + GAP
        captions = Image.new("L", (canvas_width, BAR + height * scale + BAR), BACKGROUND)
        lefts = [GAP + index * (cell + GAP) for index in range(len(videos))]
        for left, name in zip(lefts, videos, strict=True):
            write(captions, left + cell // 2, BAR // 2, name)
        margin = (cell - width * scale) // 2
        corners = [(left + margin, BAR) for left in lefts]
        return cls(captions, count, scale, (width * scale, height * scale), corners)

    def page(self, index: int) -> Image.Image:
        """Returns the captions with the number of a frame, without the frames."""
        page = self.captions.copy()
        write(page, page.width // 2, page.height - BAR // 2, f"frame {index} of {self.count}")
        return page


def check_videos(videos: dict[str, Frames]) -> None:
    """Raises TypeError for frames that are not uint8, ValueError for none, empty or unlike ones."""
    for name, frames in videos.items():
        if frames.dtype != np.uint8:
            raise TypeError(f"the frames of {name} hold {frames.dtype}; convert them to uint8.")
    shapes = {name: frames.shape for name, frames in videos.items()}
    first = next(iter(shapes.values()), (0,))
    if 0 in first or len(set(shapes.values())) != 1:
        raise ValueError(f"a picture needs videos of one shape and not empty, not {shapes}.")


def scale_to(height: int, width: int, wanted: int) -> int:
    """Returns the whole number that brings the longer side nearest to `wanted` pixels."""
    return max(1, round(wanted / max(height, width)))


def text_width(text: str) -> int:
    """Returns the width of a written text in pixels."""
    return math.ceil(_FONT.getlength(text)) + 2


def write(image: Image.Image, x: int, y: int, text: str) -> None:
    """Writes text centred on a point."""
    ink = _INK if image.mode == "L" else (_INK,) * 3
    ImageDraw.Draw(image).text((x, y), text, ink, _FONT, anchor="mm")
