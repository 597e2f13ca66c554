"""Where poses come from: keypoints of others, two passes with a made-up model, the real one's environment."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cvae_jax.data.datasets import real_clips
from cvae_jax.data.pose import LANDMARKS, USED_LANDMARKS, landmark_index
from cvae_jax.prepare import pose_worker, poses, track
from cvae_jax.prepare.crop import USED
from cvae_jax.prepare.footage import Folder, Footage
from cvae_jax.prepare.keypoints import read_keypoints
from cvae_jax.prepare.pose_environment import POSE
from cvae_jax.prepare.pose_model import PoseModel
from cvae_jax.prepare.timing import Timing, resample
from cvae_jax.runtime.errors import UserError

SIZE = (200, 100)


# Keypoints of others


def refused(path: Path, *words: str, count: int = 3) -> None:
    with pytest.raises(UserError) as caught:
        read_keypoints(path, count, SIZE)
    message = str(caught.value)
    for word in (path.name, *words):
        assert word in message, message
    assert message.endswith(".") and "\n" not in message


def save(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def open_pose(joints: int, shift: float = 0, confidence: float = 0.9) -> dict:
    """A person whose joint i is at (i + shift, 2 i)."""
    return {"pose_keypoints_2d": [v for i in range(joints) for v in (i + shift, 2 * i, confidence)]}


def test_mediapipe_landmarks(tmp_path: Path) -> None:
    triples = [[i / 100, i / 50, 0.0, 1.0] for i in range(33)]
    named = [{"x": x, "y": y, "z": z, "visibility": v} for x, y, z, v in triples]
    for number, frames in enumerate(([triples, None, named], {"frames": [triples, [], named]})):
        found = read_keypoints(save(tmp_path / f"{number}.json", frames), 3, SIZE)
        np.testing.assert_allclose(found[0], [(2 * i, 2 * i) for i in range(33)])
        np.testing.assert_array_equal(found[0], found[2])
        assert np.isnan(found[1]).all()


# Numbers from OpenPose's documentation of its output.
@pytest.mark.parametrize(
    "joints, expected",
    [
        (
            25,
            {
                "nose": 0,
                "left_shoulder": 5,
                "right_wrist": 4,
                "left_hip": 12,
                "right_ankle": 11,
                "left_ear": 18,
                "left_foot_index": 19,
                "right_foot_index": 22,
            },
        ),
        (
            18,
            {
                "nose": 0,
                "left_shoulder": 5,
                "right_wrist": 4,
                "left_hip": 11,
                "right_ankle": 10,
                "left_ear": 17,
            },
        ),
    ],
)
def test_open_pose_of_both_bodies(joints: int, expected: dict[str, int], tmp_path: Path) -> None:
    person = open_pose(joints)
    person["pose_keypoints_2d"][3 * 3 + 2] = 0.0  # the right elbow is not seen
    folder = tmp_path / "json"
    folder.mkdir()
    for t, people in enumerate(([person], [], [open_pose(joints, shift=7)])):
        save(folder / f"dance_{t:012d}_keypoints.json", {"version": 1.3, "people": people})
    found = read_keypoints(folder, 3, SIZE)
    for name, number in expected.items():
        assert found[0, landmark_index(name)].tolist() == [number, 2 * number]
        assert found[2, landmark_index(name)].tolist() == [number + 7, 2 * number]
    assert np.isnan(found[0, landmark_index("right_elbow")]).all() and np.isnan(found[1]).all()
    listed = [json.loads(file.read_text()) for file in sorted(folder.iterdir())]
    np.testing.assert_array_equal(read_keypoints(save(tmp_path / "all.json", listed), 3, SIZE), found)


def test_one_clear_person_among_shadows_is_taken_and_two_are_refused(tmp_path: Path) -> None:
    shadow = open_pose(25, shift=50, confidence=0.15)
    frames = [{"people": [shadow, open_pose(25)]}]
    found = read_keypoints(save(tmp_path / "one.json", frames), 1, SIZE)
    assert found[0, landmark_index("nose")].tolist() == [0, 0]
    frames = [{"people": []}, {"people": [open_pose(25), open_pose(25, shift=50)]}]
    refused(save(tmp_path / "two.json", frames), "Frame 1", "2 people", count=2)


def test_what_can_be_wrong_with_keypoints(tmp_path: Path) -> None:
    good = [[0.5, 0.5]] * 33
    refused(tmp_path / "absent.json", "no file or folder")
    (tmp_path / "text.json").write_text('[{"x": 1')
    refused(tmp_path / "text.json", "not valid JSON")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path / "bytes.json", "not valid JSON")
    refused(save(tmp_path / "few.json", [good] * 2), "of 2 frames", "video has 3")
    refused(save(tmp_path / "form.json", {"poses": [good] * 3}), "not a list of frames", "BODY_25")
    refused(save(tmp_path / "short.json", [good, good[:17], good]), "Frame 1", "unknown form")
    refused(save(tmp_path / "words.json", [good, good, [["a", "b"]] * 33]), "Frame 2", "unknown form")
    refused(save(tmp_path / "coco.json", [{"people": [open_pose(17)]}] * 3), "Frame 0", "unknown form")
    refused(save(tmp_path / "pixels.json", [good, [[120, 40]] * 33, good]), "far outside [0, 1]")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no OpenPose files")


# Poses over time


def standing(x: float, y: float, height: float) -> np.ndarray:
    """A body (33, 2) that faces us, hips at x, y."""
    rng = np.random.default_rng(0)
    points = np.array([x, y]) + height * rng.uniform(-0.02, 0.02, (33, 2))
    for name, dx, dy in (
        ("nose", 0, -0.45),
        ("shoulder", 0.1, -0.3),
        ("elbow", 0.15, -0.2),
        ("wrist", 0.2, -0.1),
        ("hip", 0.06, 0),
        ("knee", 0.06, 0.2),
        ("ankle", 0.06, 0.45),
        ("foot_index", 0.1, 0.5),
    ):
        for side, sign in (("left", 1), ("right", -1)):
            if f"{side}_{name}" in LANDMARKS:
                points[landmark_index(f"{side}_{name}")] = (x + sign * height * dx, y + height * dy)
    points[landmark_index("nose")] = (x, y - 0.45 * height)
    return points


def test_looks_that_exchange_left_and_right_are_put_right() -> None:
    bodies = np.stack([standing(50 + t, 50, 60) for t in range(6)])
    looks = np.repeat(bodies[:, None], 4, axis=1)
    looks[2, :3] = looks[2, :3][:, poses.OTHER_SIDE]
    looks[4, 1] = np.nan
    merged = poses.merge_looks(looks)
    np.testing.assert_allclose(merged, bodies)
    looks[4, :3] = np.nan
    assert np.isnan(poses.merge_looks(looks)[4]).all()  # one look of four is not enough


def test_gaps_are_interpolated_but_not_the_ends() -> None:
    bodies = np.stack([standing(50 + 2 * t, 50, 60) for t in range(12)])
    holes = bodies.copy()
    holes[[0, 3, 4, 7, 8, 9]] = np.nan
    filled = poses.fill(holes, 2)
    np.testing.assert_allclose(filled[1:7], bodies[1:7])
    assert poses.seen(filled).tolist() == [False, *[True] * 6, *[False] * 3, True, True]


def test_an_outlier_of_one_frame_is_removed() -> None:
    bodies = np.stack([standing(50, 50, 60)] * 5)
    bodies[2] += 30
    np.testing.assert_array_equal(poses.steady(bodies)[2], bodies[0])


def test_a_mirrored_body_has_its_sides_exchanged() -> None:
    assert pose_worker.LEFT_RIGHT == poses.OTHER_SIDE


# The two passes, with a model that sees the bright columns of a picture


class Columns(PoseModel):
    """Sees the brightest body in a picture: a vertical bar, if it is at least 1/4 as high as the picture."""

    def __init__(self) -> None:
        pass

    def look(self, picture: Image.Image, where: track.Look) -> np.ndarray:
        x0, y0, x1, y1 = (round(v) for v in where.box)
        shown = Image.new("L", picture.size)
        shown.paste(picture.crop(where.inside), where.inside)
        pixels = np.asarray(shown.crop((x0, y0, x1, y1)))
        rows, columns = np.nonzero(pixels >= max(150, pixels.max()))
        if not len(rows) or np.ptp(rows) < 0.25 * len(pixels):
            return np.full((33, 3), np.nan)
        height = float(np.ptp(rows) + 1)
        points = standing(x0 + float(columns.mean()), y0 + float(rows.min()) + height / 2, height)
        return np.concatenate([points, np.ones((33, 1))], axis=1)

    def map(self, work, items):
        return map(work, items)


def bars(folder: Path, *frames: tuple[tuple[int, int, int, int, int], ...]) -> tuple[Footage, Timing]:
    """A folder of pictures with bars (x0, y0, x1, y1, brightness)."""
    folder.mkdir()
    for t, drawn in enumerate(frames):
        picture = Image.new("L", (240, 160), 30)
        for *box, level in drawn:
            ImageDraw.Draw(picture).rectangle(box, fill=level)
        picture.save(folder / f"{t}.png")
    footage = Folder(folder, 10.0)
    return footage, resample(footage, None, None, None)


WHOLE = (0, 0, 240, 160)


def test_a_walker_is_followed(tmp_path: Path) -> None:
    frames = [((20 + 4 * t, 40, 30 + 4 * t, 120, 250),) for t in range(20)]
    frames[8:10] = [(), ()]
    found = track.find_person(*bars(tmp_path / "f", *frames), Columns(), WHOLE)
    seen = poses.seen(found)
    assert np.flatnonzero(~seen).tolist() == [8, 9]
    hips = found[:, [landmark_index("left_hip"), landmark_index("right_hip")], 0].mean(axis=1)
    np.testing.assert_allclose(hips[seen], 25 + 4 * np.flatnonzero(seen), atol=1)


def test_a_small_person_is_found_in_a_window(tmp_path: Path) -> None:
    frames = [((100 + t, 60, 106 + t, 90, 250),) for t in range(12)]  # less than 1/4 of the picture
    found = track.find_person(*bars(tmp_path / "f", *frames), Columns(), WHOLE)
    assert poses.seen(found).all()


def test_nobody_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No person was found in .*--keypoints"):
        track.find_person(*bars(tmp_path / "f", *[()] * 10), Columns(), WHOLE)


def test_a_second_person_is_refused_unless_cropped_away_or_small(tmp_path: Path) -> None:
    one = (40, 30, 52, 120, 250)
    both = bars(tmp_path / "two", *[(one, (180, 40, 190, 110, 200))] * 12)
    with pytest.raises(UserError, match="more than one person, as at 0.0 s.*--crop"):
        track.find_person(*both, Columns(), WHOLE)
    found = track.find_person(*both, Columns(), (0, 0, 100, 160))
    assert np.nanmax(found[:, USED, 0]) < 100
    far = bars(tmp_path / "far", *[(one, (180, 100, 184, 122, 200))] * 12)
    track.find_person(*far, Columns(), WHOLE)


# The environment


def test_a_broken_environment_is_told(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no module named mediapipe' >&2\nexit 1\n")
    python.chmod(0o755)
    with PoseModel(python, workers=1) as model:
        with pytest.raises(UserError, match="no module named mediapipe.*delete its environment"):
            model.look(Image.new("RGB", (64, 64)), track.Look((0, 0, 64, 64), (0, 0, 64, 64), 64))


@pytest.mark.slow
def test_the_star_jumper_is_found_by_mediapipe(tmp_path: Path) -> None:
    """Sets up the environment (its place is kept) and compares with the embedded keypoints."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for t, frame in enumerate(real_clips.read_strip("star_jump_frames.png")[:40]):
        large = Image.fromarray(frame).resize((320, 640), Image.Resampling.BICUBIC)
        large.save(folder / f"{t}.png")
    footage = Folder(folder, 30.0)
    with PoseModel(POSE.python()) as model:
        found = track.find_person(footage, resample(footage, None, None, None), model, (0, 0, 320, 640))
    known = poses.seen(found)
    assert known.mean() > 0.9
    joints = [landmark_index(name) for name in USED_LANDMARKS if "shoulder" in name or "hip" in name]
    truth = real_clips.read_keypoints()["star_jump"][:40][known][:, joints]
    error = np.abs(found[known][:, joints] / (320, 640) - truth)
    assert np.median(error) < 0.02
