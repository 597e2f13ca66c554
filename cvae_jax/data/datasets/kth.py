"""The KTH actions (Schuldt et al., 2004): 25 persons, six actions, four scenarios, gray, still camera.

    D/boxing/person01_boxing_d1_uncomp.avi ...   D/00sequences.txt

`00sequences.txt`, which comes with the data, lists the frames of a video in which the person is visible;
without it a video is one recording.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import sys
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from cvae_jax.data.brought import FRAME_SIZE, content_key, require_folder
from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.data.contents import RECORD_FRAMES, Contents
from cvae_jax.data.dataset import DataSet, require_at_least, require_choice
from cvae_jax.data.store import load_prepared
from cvae_jax.runtime.errors import UserError

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


@dataclasses.dataclass(frozen=True)
class Options:
    """The section `config.data.kth`."""

    labels: str = "none"  # none, or action: which of the six, as a one-hot vector
    eval_frames: int = 40  # of each validation and test sequence; shorter ones are left out

    def __post_init__(self) -> None:
        require_choice(NAME, self, labels=LABELS)
        require_at_least(NAME, self, eval_frames=2)

    @property
    def label_size(self) -> int:
        """The length of a label."""
        return len(ACTIONS) if self.labels == "action" else 0


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


def read_recordings(
    videos: list[Video], frame_size: tuple[int, int], options: Options, split: str
) -> Iterator[Recording]:
    """Yield a recording per stretch, in pieces; of validation and test its first `eval_frames`."""
    own = [video for video in videos if video.person in PERSONS[split]]
    for video in tqdm(own, desc=f"Decoding KTH ({split})", unit="video", file=sys.stderr, leave=False):
        frames = decode(video.path, frame_size)
        for start, stop in video.stretches:
            part = frames[start:stop]
            if split != "train":
                part = part[: options.eval_frames]
                if len(part) < options.eval_frames:
                    continue
            for begin in range(0, len(part), RECORD_FRAMES):
                piece = part[begin : begin + RECORD_FRAMES]
                yield Recording(
                    scene=NAME,
                    name=f"{video.name}_{start:04d}",
                    start=start + begin,
                    frames=piece,
                    labels=make_labels(video.action, len(piece))
                    if options.label_size
                    else no_labels(len(piece)),
                )


def make_labels(action: str, length: int) -> np.ndarray:
    """Return the action of `length` frames as one-hot vectors, float32 (length, 6)."""
    return np.repeat(np.eye(len(ACTIONS), dtype=np.float32)[[ACTIONS.index(action)]], length, axis=0)


def decode(path: pathlib.Path, frame_size: tuple[int, int]) -> np.ndarray:
    """Return a video as uint8 (T, H, W, 3), gray, averaged down over areas; UserError where it is damaged."""
    import av

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
    *, data_dir: str | None, cache_dir: str, frame_size: tuple[int, int] | None, options: Options
) -> dict[str, list[Recording]]:
    """Return the videos at frame_size (None: (64, 64)), split by person.

    Raises UserError for files that are missing, misnamed or damaged, and where cache_dir cannot be written.
    """
    size = FRAME_SIZE if frame_size is None else frame_size
    root = require_folder(NAME, data_dir, EXPECTED)
    videos = find_videos(root)
    files = [video.path for video in videos]
    if (root / SEQUENCES).is_file():
        files.append(root / SEQUENCES)
    contents = Contents(
        name=NAME,
        description="The KTH actions, split by person.",
        frame_size=size,
        label_size=options.label_size,
        splits=tuple(PERSONS),
        records=functools.partial(read_recordings, videos, size, options),
    )
    key = content_key(files, root, FORMAT, size, options.labels, options.eval_frames)
    return load_prepared(cache_dir, key, contents)


DATA_SET = DataSet(
    load=load,
    options=Options,
    default_frame_size=lambda data_dir: FRAME_SIZE,
    label_size=lambda options: options.label_size,
)
