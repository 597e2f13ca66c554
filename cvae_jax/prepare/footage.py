"""Videos and folders of frames, read one frame at a time.

A video is decoded from its beginning whenever it is read: memory does not grow with its length, and
every kind of file that PyAV knows is read in one way, whether or not it can seek.
"""

from __future__ import annotations

import abc
import contextlib
import re
import shlex
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from cvae_jax.runtime.errors import UserError

SOURCE_FPS = 30.0  # of a folder of frames, which has no times
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
CUT_SHORT = 0.9  # a file with less than this part of the frames it promises is cut short


class Footage(abc.ABC):
    """Frames in the order of their times.

    path: where they come from. size: (width, height), upright and with square pixels.
    times: float64 (N,), seconds from the first frame, never falling.
    """

    path: Path
    size: tuple[int, int]
    times: np.ndarray

    @property
    def fps(self) -> float:
        """Mean frames per second; N must be at least 2."""
        return (len(self.times) - 1) / float(self.times[-1])

    def pictures(self, wanted: np.ndarray) -> Iterator[Image.Image]:
        """Yield the frames of these indices, int (n,), which never fall; a frame may come repeatedly."""
        position = 0
        with contextlib.closing(self._items()) as items:
            for index, item in enumerate(items):
                if position == len(wanted):
                    return
                if wanted[position] > index:
                    continue
                picture = self._picture(item)
                while position < len(wanted) and wanted[position] == index:
                    yield picture
                    position += 1
        if position < len(wanted):
            raise UserError(f"{self.path} has changed while it was read; prepare it again.")

    @abc.abstractmethod
    def _items(self) -> Generator[Any, None, None]:
        """Yield all frames, not yet converted."""

    @abc.abstractmethod
    def _picture(self, item: Any) -> Image.Image:
        """Return a frame as an RGB picture of `size`."""


def open_footage(path: Path, source_fps: float | None = None) -> Footage:
    """Read a video, a GIF or a folder of frames once, so that what is wrong with it is known.

    source_fps: of a folder of frames; None: 30. Raises UserError for what cannot be read, holds fewer than
    two frames, is cut short or changes its size.
    """
    if not path.exists():
        raise UserError(f"There is no file or folder {path}: correct --video.")
    if path.is_dir():
        return Folder(path, SOURCE_FPS if source_fps is None else source_fps)
    if source_fps is not None:
        raise UserError(
            f"--source_fps is of a folder of frames, and {path} is a file with its own times: leave it out."
        )
    return Video(path)


class Video(Footage):
    """A video file that PyAV can decode: MP4, MOV, WebM, GIF and others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            empty = path.stat().st_size == 0
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): make it readable.") from error
        if empty:
            raise UserError(f"{path} is empty (0 bytes): copy the video again.")
        times: list[float] = []
        promised, lasts, rate = self._promise()
        title, total = "Reading the video", promised or None
        bar = tqdm(desc=title, total=total, unit="frame", file=sys.stderr, leave=False)
        with bar, contextlib.closing(self._items(times)) as items:
            for frame in items:
                size = _upright_size(frame, self._aspect)
                if not times:
                    self.size = size
                elif size != self.size:
                    raise UserError(
                        f"{path} changes its size from {self.size[0]} x {self.size[1]} to "
                        f"{size[0]} x {size[1]} pixels at frame {len(times)}: "
                        f"re-encode it with {_reencode(path)}."
                    )
                times.append(len(times) / rate if frame.time is None else float(frame.time))
                bar.update()
        if len(times) < 2:
            raise UserError(f"{path} holds {len(times)} frames that can be decoded: give a video.")
        if len(times) < CUT_SHORT * promised or times[-1] - times[0] < CUT_SHORT * lasts - 1:
            raise _cut_short(path, len(times))
        rising = np.maximum.accumulate(np.array(times))
        if rising[-1] <= rising[0]:
            raise UserError(f"All frames of {path} have one time: re-encode it with {_reencode(path)}.")
        self.times = rising - rising[0]

    def _promise(self) -> tuple[int, float, float]:
        """Return how many frames the file says it has (0: it does not), their seconds, and its rate."""
        with _opened(self.path) as container:
            stream = container.streams.video[0]
            self._aspect = float(stream.sample_aspect_ratio or 1)
            lasts = float(stream.duration * stream.time_base) if stream.duration else 0.0
            if not lasts and container.duration and len(container.streams) == 1:
                lasts = container.duration / av.time_base
            return stream.frames, lasts, float(stream.average_rate or SOURCE_FPS)

    def _items(self, seen: list[float] | None = None) -> Generator[av.VideoFrame, None, None]:
        with _opened(self.path) as container:
            container.streams.video[0].thread_type = "AUTO"
            decoded = 0
            try:
                for frame in container.decode(container.streams.video[0]):
                    yield frame
                    decoded += 1
            except av.error.FFmpegError as error:
                raise _cut_short(self.path, decoded) from error

    def _picture(self, item: av.VideoFrame) -> Image.Image:
        turns = _turns(item)
        width, height = self.size[::-1] if turns % 2 else self.size
        pixels = item.to_ndarray(format="rgb24", width=width, height=height)
        return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))


class Folder(Footage):
    """A folder of images of one size with numbers in their names, a fixed time apart."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.files = numbered(path, IMAGES, "images (PNG, JPEG, ...)")
        with tqdm(self.files, desc="Reading the images", unit="file", file=sys.stderr, leave=False) as bar:
            for file in bar:
                size = self._picture(file).size
                if file is self.files[0]:
                    self.size = size
                elif size != self.size:
                    raise UserError(
                        f"{file} is {size[0]} x {size[1]} pixels, while {self.files[0].name} beside it is "
                        f"{self.size[0]} x {self.size[1]}: give all images of a folder the same size."
                    )
        if len(self.files) < 2:
            raise UserError(f"{path} holds one image: give a folder with all frames of a video.")
        self.times = np.arange(len(self.files)) / fps

    def _items(self) -> Generator[Path, None, None]:
        yield from self.files

    def _picture(self, item: Path) -> Image.Image:
        try:
            with Image.open(item) as opened:
                image: Image.Image = opened
                if image.mode == "P":  # a palette may hold transparency, which only RGBA takes
                    image = image.convert("RGBA")
                elif image.mode.startswith("I"):  # 16 bits: Pillow would clip instead of scaling
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                return image.convert("RGB")
        # Pillow raises SyntaxError for a broken PNG chunk.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{item} cannot be read as an image (damaged or cut short): replace it with a good copy."
            ) from error


def numbered(folder: Path, endings: tuple[str, ...], what: str) -> list[Path]:
    """Return a folder's files with these endings by the last number in their names.

    Raises UserError where there are none, or one has no number, or two have the same.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.lower().endswith(endings) or path.name.startswith("."):
            continue
        digits = re.findall("[0-9]+", path.stem)
        if not digits:
            raise UserError(f"{path} has no number in its name: name it like frame12 or 0012.")
        number = int(digits[-1])
        if number in found:
            raise UserError(
                f"{found[number]} and {path.name} beside it have the same number {number}: rename or remove "
                "one of them."
            )
        found[number] = path
    if not found:
        raise UserError(f"The folder {folder} holds no {what}: give one that does.")
    return [found[number] for number in sorted(found)]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be opened as a video (no video, damaged, or its end is missing): give a good "
            "copy of an MP4, MOV, WebM or GIF file."
        ) from error
    with container:
        if not container.streams.video:
            raise UserError(f"{path} holds no pictures, only sound or text: give a video.")
        if container.streams.video[0].codec_context is None:
            raise UserError(
                f"The pictures of {path} are in a form that cannot be decoded here: re-encode it with "
                f"{_reencode(path)}."
            )
        yield container


def _turns(frame: av.VideoFrame) -> int:
    """Return quarter turns, counter-clockwise, that put a frame upright."""
    return round(frame.rotation / 90) % 4


def _upright_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    size = (max(1, round(frame.width * aspect)), frame.height)
    return size[::-1] if _turns(frame) % 2 else size


def _reencode(path: Path) -> str:
    return f"ffmpeg -i {shlex.quote(path.name)} -c:v libx264 -pix_fmt yuv420p again.mp4"


def _cut_short(path: Path, decoded: int) -> UserError:
    return UserError(
        f"{path} is damaged or cut short after {decoded} frames: copy it again, or keep these frames with "
        f"{_reencode(path)}."
    )
