"""The KTH actions (Schuldt et al., 2004): 25 persons, six actions, four scenarios, gray, still camera.

    D/boxing/person01_boxing_d1_uncomp.avi ...   D/00sequences.txt (or D/boxing/../00sequences.txt)

`00sequences.txt`, which comes with the data, says in which frames of a video the person is there; without it
a video is one recording.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.data.datasets.brought import FRAME_SIZE, content_key, require_folder
from cvae_jax.data.datasets.store import RECORD_FRAMES, RecordingsBuilder, load_prepared
from cvae_jax.errors import UserError

NAME = "kth"
FORMAT = "1"  # goes up when the same files would be prepared differently
ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
PERSONS = {  # the test persons of Villegas et al. (2017), SVG and SRVP
    "train": range(1, 19),
    "validation": range(19, 21),
    "test": range(21, 26),
}
LABELS = ("none", "action")
SEQUENCES = "00sequences.txt"
EXPECTED = (
    "a folder for each action with person01_boxing_d1_uncomp.avi ... (https://www.csc.kth.se/cvap/actions/)"
)


class Video:
    """One file of the data set: its person, action, scenario and the stretches (start, stop) to take."""

    def __init__(self, path: pathlib.Path, stretches: dict[str, list[tuple[int, int]]]) -> None:
        match = re.fullmatch(r"(person(\d\d)_([a-z]+)_d\d)_uncomp", path.stem)
        if match is None or match[3] not in ACTIONS:
            raise UserError(
                f"{path} is not named like person01_boxing_d1_uncomp.avi: rename or remove the file."
            )
        self.path, self.name, self.person, self.action = path, match[1], int(match[2]), match[3]
        self.stretches = stretches.get(self.name, [(0, sys.maxsize)])


class Kth(RecordingsBuilder):
    """The KTH actions, split by person."""

    splits = tuple(PERSONS)

    def __init__(self, *, videos: list[Video], label_size: int, eval_frames: int, **keywords: Any) -> None:
        self.videos, self.label_size, self.eval_frames = videos, label_size, eval_frames
        super().__init__(**keywords)

    def records(self, split: str) -> Iterator[Recording]:
        """A recording per stretch, in pieces; of validation and test its first `eval_frames`."""
        own = [video for video in self.videos if video.person in PERSONS[split]]
        for video in tqdm(own, desc=f"Decoding KTH ({split})", unit="video", file=sys.stderr, leave=False):
            frames = decode(video.path, self.frame_size)
            for start, stop in video.stretches:
                part = frames[start:stop]
                if split != "train":
                    part = part[: self.eval_frames]
                    if len(part) < self.eval_frames:
                        continue
                for begin in range(0, len(part), RECORD_FRAMES):
                    piece = part[begin : begin + RECORD_FRAMES]
                    yield Recording(
                        scene=NAME,
                        name=f"{video.name}_{start:04d}",
                        start=start + begin,
                        frames=piece,
                        labels=self._labels(video.action, len(piece)),
                    )

    def _labels(self, action: str, length: int) -> np.ndarray:
        if not self.label_size:
            return no_labels(length)
        return np.repeat(np.eye(len(ACTIONS), dtype=np.float32)[[ACTIONS.index(action)]], length, axis=0)


def decode(path: pathlib.Path, frame_size: tuple[int, int]) -> np.ndarray:
    """Return a video as uint8 (T, H, W, 3), gray, averaged down over areas; UserError where it is damaged."""
    height, width = frame_size
    frames = []
    try:
        with av.open(path) as container:
            for frame in container.decode(container.streams.video[0]):
                small = frame.reformat(width, height, "gray", interpolation="AREA")
                frames.append(small.to_ndarray())
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UserError(
            f"{path} cannot be decoded after {len(frames)} frames ({error}): get the file again."
        ) from error
    if not frames:
        raise UserError(f"{path} holds no frames: get the file again.")
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1)


def read_stretches(root: pathlib.Path) -> dict[str, list[tuple[int, int]]]:
    """Return {person01_boxing_d1: [(first frame, end), ...]} of 00sequences.txt, from 0; {} without it."""
    path = root / SEQUENCES
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text(errors="replace").splitlines():
        match = re.match(r"\s*(person\d\d_[a-z]+_d\d)\s+frames\s+(.*)", line)
        if match:
            pairs = re.findall(r"(\d+)\s*-\s*(\d+)", match[2])
            found[match[1]] = [(int(first) - 1, int(last)) for first, last in pairs]
    return found


def find_videos(root: pathlib.Path) -> list[Video]:
    """Return the videos under root, sorted by name; UserError where a split would have none."""
    stretches = read_stretches(root)
    paths = sorted(path for action in ACTIONS for path in (root / action).glob("*.avi"))
    videos = [Video(path, stretches) for path in paths]
    for split, persons in PERSONS.items():
        if not any(video.person in persons for video in videos):
            raise UserError(
                f"{root} holds no video of persons {persons[0]} to {persons[-1]} ({split}): expected is "
                f"{EXPECTED}."
            )
    return videos


def load(
    *,
    data_dir: str | None,
    cache_dir: str,
    frame_size: tuple[int, int] | None,
    labels: str,
    eval_frames: int,
) -> dict[str, list[Recording]]:
    """The videos at frame_size (None: (64, 64)), split by person.

    labels: 'none', or 'action' for one-hot vectors of the six actions, sorted by name. Raises UserError for
    files that are missing, misnamed or damaged, and where cache_dir cannot be written.
    """
    if labels not in LABELS:
        raise UserError(f"config.data.kth.labels is {labels!r}; choose one of {', '.join(LABELS)}.")
    size = FRAME_SIZE if frame_size is None else tuple(frame_size)
    root = require_folder(NAME, data_dir, EXPECTED)
    videos = find_videos(root)
    files = [video.path for video in videos]
    if (root / SEQUENCES).is_file():
        files.append(root / SEQUENCES)
    key = content_key(files, root, FORMAT, size, labels, eval_frames)
    return load_prepared(
        pathlib.Path(cache_dir) / NAME / key,
        lambda folder: Kth(
            videos=videos,
            label_size=len(ACTIONS) if labels == "action" else 0,
            eval_frames=eval_frames,
            frame_size=size,
            data_dir=folder,
        ),
    )
