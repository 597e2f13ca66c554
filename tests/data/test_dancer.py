"""The procedural dancer: purity, what stays within the frame, what chance changes, and its preparation."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.data import datasets, pose
from cvae_jax.data.dancer import body, workers
from cvae_jax.data.dancer.scene import Scene
from cvae_jax.data.datasets import dancer
from cvae_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent
SMALL = dict(seed=0, train_frames=70, validation_frames=5, test_sequences=2, test_frames=3)
SIZE = (16, 24)


def load(cache: pathlib.Path, frame_size: tuple[int, int] | None = SIZE, **changed: int) -> dict:
    return datasets.load(
        "dancer",
        data_dir=None,
        cache_dir=str(cache),
        frame_size=frame_size,
        options=SMALL | changed,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict]:
    cache = tmp_path_factory.mktemp("cache")
    return cache, load(cache)


# What is made


def test_splits_lengths_and_sizes(prepared: tuple[pathlib.Path, dict]) -> None:
    shape = {
        split: [(r.scene, r.name, r.start, len(r.frames)) for r in recordings]
        for split, recordings in prepared[1].items()
    }
    assert shape == {
        "train": [("dancer", "train", 0, 70)],
        "validation": [("dancer", "validation", 0, 5)],
        "test": [("dancer", "test_000", 0, 3), ("dancer", "test_001", 0, 3)],
    }
    for recordings in prepared[1].values():
        for recording in recordings:
            assert recording.frames.shape[1:] == recording.labels.shape[1:] == (*SIZE, 3)
            assert recording.frames.dtype == recording.labels.dtype == np.uint8


def test_any_frame_alone_is_the_frame_of_the_sequence(prepared: tuple[pathlib.Path, dict]) -> None:
    scene = Scene(0, SIZE)
    for split, sequence, indices in (("train", 0, (69, 0, 64)), ("validation", 0, (4,)), ("test", 1, (2, 0))):
        recording = prepared[1][split][sequence]
        for index in indices:
            np.testing.assert_array_equal(scene.frame(split, sequence, index), recording.frames[index])
            np.testing.assert_array_equal(scene.label(split, sequence, index), recording.labels[index])


def test_processes_paint_what_one_paints() -> None:
    scene = Scene(3, SIZE)
    jobs = [workers.Job("train", 0, start, start + 3) for start in (0, 3, 900)]
    for pixels, job in zip(workers.render_all(scene, jobs), jobs, strict=True):
        np.testing.assert_array_equal(pixels, workers.render(scene, job))


@pytest.mark.parametrize("frame_size", [(32, 64), (64, 32), (64, 64), (128, 128), (11, 40)])
def test_frame_sizes(frame_size: tuple[int, int]) -> None:
    frame, label = Scene(0, frame_size).pair("train", 0, 7)
    assert frame.shape == label.shape == (*frame_size, 3)
    assert frame.dtype == label.dtype == np.uint8
    assert label.any()


def test_another_seed_is_another_dancer() -> None:
    one, other = (Scene(seed, (32, 64)) for seed in (0, 1))
    assert one.look != other.look
    assert np.any(one.frame("train", 0, 0)[0] != other.frame("train", 0, 0)[0])  # the wall
    assert not np.allclose(*(s.keypoints("train", 0, 50) for s in (one, other)), equal_nan=True)


def test_sequences_differ_and_share_dancer_and_studio() -> None:
    scene = Scene(0, (32, 64))
    keypoints = [
        np.stack([scene.keypoints(split, sequence, t) for t in range(0, 300, 10)])
        for split, sequence in (("train", 0), ("validation", 0), ("test", 0), ("test", 1))
    ]
    for i, one in enumerate(keypoints):
        for other in keypoints[:i]:
            nearest = np.nanmax(np.abs(one[:, None] - other[None]), axis=(2, 3)).min(axis=1)
            assert np.median(nearest) > 0.02
    walls = [scene.frame(split, 0, 0)[4:8, :2].astype(float) for split in ("train", "test")]
    np.testing.assert_allclose(walls[0] / walls[0].mean(), walls[1] / walls[1].mean(), atol=0.02)


# The dance


@pytest.mark.parametrize("frame_size", [(32, 64), (64, 32)])
def test_the_dancer_stays_in_the_frame_and_on_the_floor(frame_size: tuple[int, int]) -> None:
    scene = Scene(0, frame_size)
    rows = [pose.landmark_index(name) for name in pose.USED_LANDMARKS]
    tall = []
    for index in range(0, 20000, 29):
        built = scene._body("train", 0, index)
        keypoints = body.keypoints(built, scene.camera)
        assert np.isfinite(keypoints[rows]).all() and np.isfinite(keypoints).sum() == 2 * len(rows)
        assert np.nanmin(keypoints) >= 0 and np.nanmax(keypoints) <= 1
        ankles = [built.joints[f"{side}_ankle"][1] for side in body.SIDES]
        assert -1e-9 <= min(ankles) - body.ANKLE < 0.2
        tall.append(min(ankles) - body.ANKLE < 0.01)
        for side in body.SIDES:  # bones keep their lengths
            hip, knee, ankle = (built.joints[f"{side}_{joint}"] for joint in ("hip", "knee", "ankle"))
            assert abs(np.linalg.norm(knee - hip) - body.THIGH) < 1e-6
            assert abs(np.linalg.norm(ankle - knee) - body.SHIN) < 1e-6
    assert np.mean(tall) > 0.9  # in the air only when jumping


def test_motion_is_smooth_and_there_is_some() -> None:
    scene = Scene(0, (32, 64))
    points = np.stack([scene.keypoints("train", 0, t) for t in range(600)]) * (64, 32)
    pixels = np.linalg.norm(np.diff(points, axis=0), axis=-1)
    assert np.nanmax(pixels) < 4.5  # a punch or a kick; nothing jumps
    assert np.nanquantile(pixels, 0.999) < 3
    assert np.nanmean(pixels) > 0.2


def test_a_planted_foot_does_not_slide() -> None:
    scene = Scene(0, (32, 64))
    feet = np.stack([scene._body("train", 0, t).joints["left_ankle"] for t in range(600)])
    down = (feet[1:, 1] < body.ANKLE + 1e-6) & (feet[:-1, 1] < body.ANKLE + 1e-6)
    assert down.mean() > 0.4
    assert np.abs(np.diff(feet, axis=0)[down]).max() < 1e-3


def test_labels_are_drawn_from_the_keypoints_and_know_nothing_of_chance() -> None:
    scene, other = Scene(0, (32, 64)), Scene(0, (32, 64), chance=1)
    differences = []
    for index in range(0, 400, 40):
        frame, label = scene.pair("train", 0, index)
        frame_other, label_other = other.pair("train", 0, index)
        np.testing.assert_array_equal(label, label_other)
        unit = scene.camera.scale / 64
        drawn = pose.draw_pose(
            scene.keypoints("train", 0, index),
            frame_size=(32, 64),
            style=pose.PoseStyle(0.075 * unit, 0.075 * unit, 8),
        )
        np.testing.assert_array_equal(label, drawn)
        differences.append(np.mean((frame / 255 - frame_other / 255) ** 2))
    # Two draws differ by the square root of two times what one draw deviates from the mean.
    assert 0.012 < np.sqrt(np.mean(differences)) < 0.05


def test_the_studio_stands_still_up_to_the_light() -> None:
    scene = Scene(0, (32, 64))
    frames = np.stack([scene.frame("train", 0, t) for t in range(0, 2000, 40)]).astype(float)
    corner = frames[:, :6, :8]
    gain = corner.mean(axis=(1, 2, 3), keepdims=True) / corner.mean()
    assert np.abs(corner / gain - corner.mean(axis=0)).max() < 2
    assert 0.01 < gain.std() < 0.06


# The preparation


def test_a_second_load_paints_nothing(
    prepared: tuple[pathlib.Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("painted again")

    monkeypatch.setattr(dancer, "render_all", refuse)
    again = load(prepared[0])
    for split, recordings in prepared[1].items():
        for one, other in zip(recordings, again[split], strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
    for changed in (dict(seed=1), dict(train_frames=71), dict(test_sequences=1)):
        with pytest.raises(AssertionError, match="painted again"):
            load(prepared[0], **changed)
    with pytest.raises(AssertionError, match="painted again"):
        load(prepared[0], frame_size=(24, 16))


# The ceiling


def test_the_ceiling_is_the_mean_over_other_draws_of_chance(tmp_path: pathlib.Path) -> None:
    options = dancer.Options(**SMALL)
    made = dancer.ceiling(split="test", cache_dir=str(tmp_path), frame_size=SIZE, options=options)
    assert "16 other draws" in made.definition
    assert [(r.name, len(r.frames)) for r in made.recordings] == [("test_000", 3), ("test_001", 3)]
    draws = [Scene(0, SIZE, chance=k).frame("test", 1, 2) for k in range(1, dancer.CEILING_DRAWS + 1)]
    expected = np.mean(draws, axis=0)
    assert np.abs(made.recordings[1].frames[2] - expected).max() <= 0.5
    true = Scene(0, SIZE).frame("test", 1, 2).astype(float)
    alone = [np.mean((draw - true) ** 2) for draw in draws]
    assert np.mean((expected - true) ** 2) < np.mean(alone)


def test_no_test_sequences_no_test_split(tmp_path: pathlib.Path) -> None:
    data = load(tmp_path, train_frames=2, validation_frames=2, test_sequences=0)
    assert {split: len(recordings) for split, recordings in data.items()} == {"train": 1, "validation": 1}


def test_a_process_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    start = workers._start

    def stillborn(scene: Scene) -> subprocess.Popen:
        worker = start(scene)
        worker.kill()
        return worker

    monkeypatch.setattr(workers, "_start", stillborn)
    with pytest.raises(RuntimeError, match="paints the dancer died"):
        list(workers.render_all(Scene(0, SIZE), [workers.Job("train", 0, t, t + 1) for t in range(9)]))


def test_painting_processes_import_no_framework() -> None:
    program = (
        "import sys; import cvae_jax.data.dancer.workers; "
        "print([m for m in ('jax', 'tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_no_painting_process_outlives_a_killed_caller() -> None:
    program = (
        "from cvae_jax.data.dancer import workers; from cvae_jax.data.dancer.scene import Scene\n"
        "start = workers._start\n"
        "def told(scene):\n"
        "    worker = start(scene); print(worker.pid, flush=True); return worker\n"
        "workers._start = told\n"
        "jobs = [workers.Job('train', 0, t, t + 1000) for t in range(0, 9000, 1000)]\n"
        "list(workers.render_all(Scene(0, (32, 64)), jobs))\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker = int(caller.stdout.readline())
    caller.kill()
    caller.wait()
    caller.stdout.close()
    for _ in range(100):
        if not running(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the painting process went on")


def running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# What a user can get wrong


def test_it_reads_no_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="reads no folder, but /somewhere was given"):
        datasets.load(
            "dancer",
            data_dir="/somewhere",
            cache_dir=str(tmp_path),
            frame_size=None,
            options=SMALL,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("train_frames", 0),
        ("validation_frames", 0),
        ("test_sequences", -1),
        ("test_frames", 0),
    ],
)
def test_options_out_of_range(field: str, value: int) -> None:
    config = defaults.get_config()
    config.data.dancer[field] = value
    with pytest.raises(UserError, match=f"config.data.dancer.{field} is {value}; give"):
        config_files.Components.build(config)
