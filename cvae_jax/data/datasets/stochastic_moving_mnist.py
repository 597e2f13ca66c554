"""Stochastic Moving MNIST (Denton and Fergus, 2018), generated: two real digits that bounce at random.

Digits of 32 x 32 move over a black frame of 64 x 64. A digit starts anywhere, with a velocity of -4 to 4
pixels a frame in each direction. Where it would leave the frame it stays at the border and gets a new
velocity: 1 to 4 away from the border, -4 to 4 along it. Where digits overlap their brightness adds up, to
white at most. Nothing tells when which digit turns where: there is nothing to condition on but the past.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import pathlib
import struct
import sys
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from tqdm import tqdm

from cvae_jax.data.brought import FRAME_SIZE, require_size
from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.data.contents import SPLITS, Contents
from cvae_jax.data.dataset import DataSet, require_at_least, require_seed
from cvae_jax.data.store import load_prepared
from cvae_jax.runtime.errors import UserError

NAME = "stochastic_moving_mnist"
FORMAT = "2"  # goes up when the same options would give other pixels
DIGITS = pathlib.Path(__file__).parent / "mnist_digits" / "digits.png"
DIGIT = 32  # side of a digit in the frame
FASTEST = 4  # pixels a frame
PER_CLASS = 500  # digits of a class in DIGITS, the classes one after the other
# Of each class of the embedded digits; and of the files of the whole MNIST.
EMBEDDED = {"train": (0, 400), "validation": (400, 450), "test": (450, 500)}
WHOLE = {
    "train": ("train-images-idx3-ubyte.gz", 0, 55_000),
    "validation": ("train-images-idx3-ubyte.gz", 55_000, 60_000),
    "test": ("t10k-images-idx3-ubyte.gz", 0, 10_000),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The section `config.data.stochastic_moving_mnist`."""

    seed: int = 0  # of digits and trajectories
    digits: int = 2  # in a frame
    train_sequences: int = 2000  # training recordings
    train_frames: int = 15  # of each
    validation_sequences: int = 32  # validation recordings
    test_sequences: int = 256  # test recordings; 0 = no test split
    eval_frames: int = 25  # of each validation and test sequence

    def __post_init__(self) -> None:
        require_seed(NAME, self)
        require_at_least(NAME, self, digits=1, train_sequences=1, train_frames=2, validation_sequences=1)
        require_at_least(NAME, self, test_sequences=0, eval_frames=2)

    @property
    def lengths(self) -> dict[str, list[int]]:
        """The length of each sequence, by split."""
        lengths = {
            "train": [self.train_frames] * self.train_sequences,
            "validation": [self.eval_frames] * self.validation_sequences,
        }
        if self.test_sequences:
            lengths["test"] = [self.eval_frames] * self.test_sequences
        return lengths


def make_recordings(digits: dict[str, np.ndarray], options: Options, split: str) -> Iterator[Recording]:
    """Yield one recording per sequence. digits: uint8 (N, 32, 32) by split."""
    lengths = options.lengths[split]
    bar = tqdm(lengths, desc=f"Moving digits ({split})", unit="clip", file=sys.stderr, leave=False)
    for index, length in enumerate(bar):
        frames = sequence(digits[split], options.seed, split, index, length, options.digits)
        yield Recording(NAME, f"{split}_{index:05d}", 0, frames, no_labels(length))


def sequence(
    digits: np.ndarray, seed: int, split: str, index: int, length: int, count: int = 2
) -> np.ndarray:
    """Return frames uint8 (length, 64, 64, 3), a pure function of the arguments.

    digits: uint8 (N, 32, 32), of which `count` are drawn. A longer sequence begins like a shorter one.
    """
    chance = np.random.default_rng([seed, SPLITS.index(split), index])
    chosen = digits[chance.integers(len(digits), size=count)].astype(np.uint16)
    places, _ = _trajectories(chance, length, count)
    video = np.zeros((length, *FRAME_SIZE), np.uint16)
    for frame, corners in zip(video, places, strict=True):
        for digit, (row, column) in zip(chosen, corners, strict=True):
            frame[row : row + DIGIT, column : column + DIGIT] += digit
    gray = np.minimum(video, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def turns(num_digits: int, seed: int, split: str, index: int, length: int, count: int = 2) -> np.ndarray:
    """Return bool (length, count): where a frame is the first to show a digit's new random velocity.

    The arguments are those of `sequence`, with the number of digits to choose from. Nothing before such a
    frame tells where the digit is in it; frame 1 is one for every digit. Between them the motion is uniform,
    but for the frame in which a digit reaches the border.
    """
    chance = np.random.default_rng([seed, SPLITS.index(split), index])
    chance.integers(num_digits, size=count)  # the digits
    return _trajectories(chance, length, count)[1]


def _trajectories(chance: np.random.Generator, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (length, count, 2) of the digits, and `turns` (length, count)."""
    last = FRAME_SIZE[0] - DIGIT - 1  # of the places of a digit's corner: as there, 31 and not 32
    place = chance.integers(0, last + 1, size=(count, 2))
    velocity = chance.integers(-FASTEST, FASTEST + 1, size=(count, 2))
    places = np.zeros((length, count, 2), np.int64)
    turned = np.zeros((length + 2, count), bool)
    turned[1] = True
    for frame in range(length):
        for digit in range(count):
            places[frame, digit] = place[digit]
            moved = place[digit] + velocity[digit]
            for axis in (0, 1):
                if 0 <= moved[axis] <= last:
                    continue
                away = 1 if moved[axis] < 0 else -1
                velocity[digit, axis] = away * chance.integers(1, FASTEST + 1)
                velocity[digit, 1 - axis] = chance.integers(-FASTEST, FASTEST + 1)
                turned[frame + 2, digit] = True  # the next frame shows it at the border
            place[digit] = np.clip(moved, 0, last)
    return places, turned[:length]


@functools.cache
def embedded_digits() -> np.ndarray:
    """Return the digits that come with the package: uint8 (10, 500, 28, 28), by class."""
    with Image.open(DIGITS) as image:
        sheet = np.asarray(image)
    rows, columns = sheet.shape[0] // 28, sheet.shape[1] // 28
    cells = sheet.reshape(rows, 28, columns, 28).swapaxes(1, 2)
    return cells.reshape(10, PER_CLASS, 28, 28)


def read_digits(data_dir: str | None) -> dict[str, np.ndarray]:
    """Return each split's digits, uint8 (N, 32, 32); no digit is in two splits.

    data_dir: None for the embedded ones (400, 50 and 50 of each class), or a folder with the whole MNIST
    (55,000 and 5,000 of its training digits, its 10,000 test digits). Raises UserError for files that are
    missing or damaged.
    """
    if not data_dir:
        digits = embedded_digits()
        return {
            split: _enlarged(digits[:, start:stop].reshape(-1, 28, 28))
            for split, (start, stop) in EMBEDDED.items()
        }
    return {
        split: _enlarged(read_idx(pathlib.Path(data_dir) / name)[start:stop])
        for split, (name, start, stop) in WHOLE.items()
    }


@functools.lru_cache(maxsize=2)
def read_idx(path: pathlib.Path) -> np.ndarray:
    """Return the images of a gzipped IDX file, uint8 (N, 28, 28); UserError where it is none."""
    try:
        with gzip.open(path) as file:
            magic, count, height, width = struct.unpack(">4i", file.read(16))
            content = file.read()
        if magic != 2051 or (height, width) != (28, 28) or len(content) != count * 784:
            raise ValueError("it holds no images of 28 x 28")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as MNIST images ({error}): put {WHOLE['train'][0]} and "
            f"{WHOLE['test'][0]} there, or leave out --config.data.dir for the embedded digits."
        ) from error
    return np.frombuffer(content, np.uint8).reshape(count, 28, 28)


def _enlarged(digits: np.ndarray) -> np.ndarray:
    side = (DIGIT, DIGIT)
    return np.stack([np.asarray(Image.fromarray(d).resize(side, Image.Resampling.BILINEAR)) for d in digits])


def load(
    *, data_dir: str | None, cache_dir: str, frame_size: tuple[int, int] | None, options: Options
) -> dict[str, list[Recording]]:
    """Return generated sequences of bouncing digits: made once, after that read from cache_dir.

    Raises UserError for another frame size than (64, 64), for MNIST files that cannot be read, and where
    cache_dir cannot be written.
    """
    require_size(NAME, frame_size)
    lengths = options.lengths
    digits = read_digits(data_dir)
    content = repr((FORMAT, options.seed, options.digits, lengths))
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    for split in lengths:
        digest.update(digits[split].data)
    contents = Contents(
        name=NAME,
        description="Two MNIST digits that bounce at random, 64 x 64, without labels.",
        license="BSD-3-Clause",
        frame_size=FRAME_SIZE,
        label_size=0,
        splits=tuple(lengths),
        records=functools.partial(make_recordings, digits, options),
    )
    return load_prepared(cache_dir, digest.hexdigest(), contents)


DATA_SET = DataSet(
    load=load, options=Options, default_frame_size=lambda data_dir: FRAME_SIZE, label_size=lambda options: 0
)
