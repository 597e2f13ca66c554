"""Films of videos, as MP4 files that every browser plays (H.264, 4:2:0)."""

import os

import imageio.v3 as iio
import numpy as np
from PIL import Image

from cvae_jax.report.canvas import BACKGROUND, Columns, Frames
from cvae_jax.runtime.files import replacing

CODEC = "libx264"
PIXEL_FORMAT = "yuv420p"  # the only one that all players know


def save_mp4(
    path: str | os.PathLike,
    columns: dict[str, Frames],
    fps: int | float,
    scale: int | None = None,
) -> None:
    """Saves videos side by side as an MP4 film, laid out as `figures.save_gif` lays them out.

    The frames of all columns have one shape (T, H, W, 3); a pixel becomes `scale` x `scale` of
    them, by default so many that the longer side of a frame is about 256 pixels. H.264 halves the
    resolution of colour and needs even sides: a white line is added where a side is odd. Frames go
    to the encoder one by one.
    Raises TypeError for frames that are not uint8, and ValueError for no column, videos that are
    empty or differ in shape, or fps that is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}; it must be positive.")
    layout = Columns.of(columns, scale)
    width, height = (side + side % 2 for side in layout.captions.size)
    with replacing(path) as partial:
        with iio.imopen(partial, "w", plugin="pyav", extension=".mp4", container="mp4") as film:
            film.init_video_stream(CODEC, fps=float(fps), pixel_format=PIXEL_FORMAT)
            for index in range(layout.count):
                canvas = Image.new("RGB", (width, height), (BACKGROUND,) * 3)
                canvas.paste(layout.page(index))
                for frames, corner in zip(columns.values(), layout.corners, strict=True):
                    frame = Image.fromarray(frames[index])
                    canvas.paste(frame.resize(layout.size, Image.Resampling.NEAREST), corner)
                film.write_frame(np.asarray(canvas))
