"""The field's data sets, each on a tiny copy in the form it comes in."""

import gzip
import os
import pathlib
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds

import configs.bair
import configs.kth
import configs.moving_mnist
import configs.stochastic_moving_mnist
from cvae_jax.config import Components
from cvae_jax.data import datasets
from cvae_jax.data.datasets import bair, kth, stochastic_moving_mnist
from cvae_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent
SMALL = dict(
    seed=0,
    digits=2,
    train_sequences=3,
    train_frames=6,
    validation_sequences=2,
    test_sequences=2,
    eval_frames=9,
)


def load(name: str, cache: pathlib.Path, folder: pathlib.Path | None = None, size=None, **options):
    return datasets.load(
        name,
        data_dir=None if folder is None else str(folder),
        cache_dir=str(cache),
        frame_size=size,
        options=options,
    )


# Stochastic Moving MNIST


def test_digits_are_a_pure_function_of_the_arguments(tmp_path: pathlib.Path) -> None:
    data = load("stochastic_moving_mnist", tmp_path, **SMALL)
    assert [len(r.frames) for r in data["train"]] == [6] * 3
    assert [len(r.frames) for r in data["validation"]] == [9] * 2 == [len(r.frames) for r in data["test"]]
    assert data["train"][0].labels.shape == (6, 0)
    digits = stochastic_moving_mnist.read_digits(None)
    for split, recordings in data.items():
        for index, recording in enumerate(recordings):
            # Whatever is asked for beside it, and a longer one begins alike.
            longer = stochastic_moving_mnist.sequence(digits[split], 0, split, index, 30)
            np.testing.assert_array_equal(recording.frames, longer[: len(recording.frames)])
    frames = [r.frames[:6].tobytes() for recordings in data.values() for r in recordings]
    assert len(set(frames)) == len(frames)
    other = load("stochastic_moving_mnist", tmp_path, **SMALL | {"seed": 1})
    assert other["train"][0].frames.tobytes() != data["train"][0].frames.tobytes()


def test_one_digit_moves_at_a_constant_velocity_until_it_meets_the_border() -> None:
    """Followed by its brightness: inside the frame, at most 4 pixels a frame, turning at borders only."""
    spot = np.zeros((1, 32, 32), np.uint8)
    spot[0, 0, 0] = 255
    bounces = 0
    for index in range(20):
        video = stochastic_moving_mnist.sequence(spot, 3, "train", index, 200, count=1)
        assert (video.reshape(200, -1, 3).sum(axis=(1, 2)) == 3 * 255).all()
        place = np.stack([np.argwhere(frame[..., 0])[0] for frame in video])
        assert place.min() == 0 and place.max() == 31
        velocity = np.diff(place, axis=0)
        assert np.abs(velocity).max() <= 4
        for t in np.flatnonzero((np.diff(velocity, axis=0) != 0).any(axis=1)):
            at_border = np.isin(place[t : t + 3], (0, 31)).any()
            assert at_border
            bounces += 1
        turned = stochastic_moving_mnist.turns(1, 3, "train", index, 200, count=1)[:, 0]
        at_border = np.isin(place, (0, 31)).any(axis=1)
        assert turned[1] and at_border[np.flatnonzero(turned[2:]) + 1].all()
        changed = np.flatnonzero((np.diff(velocity, axis=0) != 0).any(axis=1)) + 2
        assert (turned[changed] | at_border[changed]).all()
        assert turned[changed].sum() > 5
    assert bounces > 100


def test_no_digit_is_in_two_splits() -> None:
    digits = stochastic_moving_mnist.read_digits(None)
    assert [len(digits[split]) for split in ("train", "validation", "test")] == [4000, 500, 500]
    own = {split: {d.tobytes() for d in digits[split]} for split in digits}
    assert not own["train"] & own["test"] and not own["train"] & own["validation"]
    classes = stochastic_moving_mnist.embedded_digits()
    assert classes.shape == (10, 500, 28, 28)
    ink = classes.mean(axis=(1, 2, 3))
    assert ink.argmin() == 1 and ink.argmax() == 0  # a one has the least ink, a zero the most


def write_idx(path: pathlib.Path, images: np.ndarray) -> None:
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">4i", 2051, *images.shape) + images.tobytes())


def test_the_whole_mnist_is_read_where_it_is_given(tmp_path: pathlib.Path, monkeypatch) -> None:
    images = np.random.default_rng(0).integers(256, size=(12, 28, 28), dtype=np.uint8)
    small = {"train": ("a.gz", 0, 8), "validation": ("a.gz", 8, 12), "test": ("b.gz", 0, 12)}
    monkeypatch.setattr(stochastic_moving_mnist, "WHOLE", small)
    write_idx(tmp_path / "a.gz", images)
    write_idx(tmp_path / "b.gz", images[::-1].copy())
    data = load("stochastic_moving_mnist", tmp_path / "cache", tmp_path, **SMALL)
    assert data["train"][0].frames.max() > 0
    stochastic_moving_mnist.read_idx.cache_clear()
    for damaged in (b"", b"garbage", (tmp_path / "a.gz").read_bytes()[:-20]):
        (tmp_path / "a.gz").write_bytes(damaged)
        with pytest.raises(UserError, match="a.gz cannot be read as MNIST images"):
            load("stochastic_moving_mnist", tmp_path / "cache", tmp_path, **SMALL)


# Moving MNIST


def moving_digits() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(20, 10, 64, 64), dtype=np.uint8)


def test_moving_mnist_from_the_file_and_from_tfds(tmp_path: pathlib.Path) -> None:
    videos = moving_digits()
    plain, prepared = tmp_path / "plain", tmp_path / "prepared"
    plain.mkdir()
    np.save(plain / "mnist_test_seq.npy", videos)

    class MovingMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """As TFDS itself writes it."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # no checksums of downloads to look for, which takes one more package

        def _info(self):
            video = tfds.features.Video(shape=(20, 64, 64, 1))
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image_sequence": video})
            )

        def _split_generators(self, dl_manager):
            return {"test": ((i, {"image_sequence": videos[:, i, ..., None]}) for i in range(10))}

        def _generate_examples(self):
            raise NotImplementedError

    prepare(MovingMnist, prepared)
    data = load("moving_mnist", tmp_path / "cache", plain)
    assert {split: len(recordings) for split, recordings in data.items()} == {
        "train": 8,
        "validation": 1,
        "test": 1,
    }
    for channel in range(3):
        np.testing.assert_array_equal(data["train"][3].frames[..., channel], videos[:, 3])
        np.testing.assert_array_equal(data["test"][0].frames[..., channel], videos[:, 9])
    again = load("moving_mnist", tmp_path / "cache", prepared)
    assert sorted(r.frames.tobytes() for part in again.values() for r in part) == sorted(
        r.frames.tobytes() for part in data.values() for r in part
    )


def prepare(builder_class, folder: pathlib.Path) -> None:
    builder = builder_class(data_dir=str(folder))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not hold mnist_test_seq.npy"),
        (b"garbage", "cannot be read"),
        (np.zeros((20, 3, 32, 32), np.uint8), r"has the shape \(20, 3, 32, 32\)"),
    ],
)
def test_a_wrong_moving_mnist_file(tmp_path: pathlib.Path, content, message: str) -> None:
    path = tmp_path / "mnist_test_seq.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(UserError, match=message):
        load("moving_mnist", tmp_path / "cache", tmp_path)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# KTH


def write_avi(path: pathlib.Path, length: int, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for t in range(length):
            gray = np.full((120, 160), value + t, np.uint8)
            frame = av.VideoFrame.from_ndarray(np.repeat(gray[..., None], 3, axis=-1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("kth ä")
    for person, length, value in ((1, 20, 10), (18, 9, 60), (19, 14, 100), (25, 12, 150)):
        write_avi(root / "walking" / f"person{person:02d}_walking_d1_uncomp.avi", length, value)
    write_avi(root / "boxing" / "person21_boxing_d4_uncomp.avi", 12, 200)
    (root / kth.SEQUENCES).write_text(
        "Sequences\n person01_walking_d1\t\tframes\t1-8, 11-20\nperson19_walking_d1 frames 2-12,13-14\n"
    )
    return root


def test_kth_is_split_by_person_and_cut_where_nobody_is(tmp_path: pathlib.Path, actions) -> None:
    data = load("kth", tmp_path, actions, size=(16, 24), eval_frames=11)
    found = {split: [(r.name, r.start, len(r.frames)) for r in part] for split, part in data.items()}
    assert found == {
        "train": [
            ("person01_walking_d1_0000", 0, 8),
            ("person01_walking_d1_0010", 10, 10),
            ("person18_walking_d1_0000", 0, 9),
        ],
        "validation": [("person19_walking_d1_0001", 1, 11)],  # the other stretch has two frames
        "test": [("person21_boxing_d4_0000", 0, 11), ("person25_walking_d1_0000", 0, 11)],
    }
    second = data["train"][1]
    assert second.frames.shape == (10, 16, 24, 3) and second.labels.shape == (10, 0)
    brightness = second.frames.reshape(10, -1).mean(axis=1)
    np.testing.assert_allclose(brightness, 10 + np.arange(10, 20), atol=2)
    assert (second.frames == second.frames[..., :1]).all()


def test_kth_actions_are_one_hot(tmp_path: pathlib.Path, actions) -> None:
    data = load("kth", tmp_path, actions, eval_frames=11, labels="action")
    np.testing.assert_array_equal(data["test"][0].labels, np.eye(6, dtype=np.float32)[[0] * 11])
    np.testing.assert_array_equal(data["test"][1].labels, np.eye(6, dtype=np.float32)[[5] * 11])
    assert data["train"][0].frames.shape[1:3] == (64, 64)


def test_kth_mistakes(tmp_path: pathlib.Path, actions) -> None:
    with pytest.raises(UserError, match="config.data.kth.labels is 'verb'"):
        load("kth", tmp_path, actions, labels="verb")
    root = tmp_path / "data"
    write_avi(root / "walking" / "person01_walking_d1_uncomp.avi", 5, 9)
    with pytest.raises(UserError, match="holds no video of persons 19 to 20"):
        load("kth", tmp_path, root)
    (root / "walking" / "me.avi").write_bytes(b"")
    with pytest.raises(UserError, match="me.avi is not named like person01"):
        load("kth", tmp_path, root)
    (root / "walking" / "me.avi").unlink()
    for person in (19, 21):
        write_avi(root / "walking" / f"person{person}_walking_d1_uncomp.avi", 5, 9)
    good = root / "walking" / "person01_walking_d1_uncomp.avi"
    good.write_bytes(b"RIFF" + bytes(60))
    with pytest.raises(UserError, match="person01_walking_d1_uncomp.avi (cannot be decoded|holds no frames)"):
        load("kth", tmp_path, root, eval_frames=4)
    assert not any((tmp_path / "kth").iterdir())  # nothing half-written


# BAIR


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict]:
    """A folder that TFDS wrote with the features of its own data set, and what is in it."""
    rng = np.random.default_rng(0)
    content = {
        split: [
            {
                "image_main": rng.integers(256, size=(30, 64, 64, 3), dtype=np.uint8),
                "image_aux1": np.zeros((30, 64, 64, 3), np.uint8),
                "action": rng.normal(3, 0.1, size=(30, 4)).astype(np.float32),
                "endeffector_pos": np.zeros((30, 3), np.float32),
            }
            for _ in range(count)
        ]
        for split, count in (("train", 4), ("test", 2))
    }

    class BairRobotPushingSmall(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """As TFDS itself writes it."""

        VERSION = tfds.core.Version("2.0.0")
        code_path = None  # no checksums of downloads to look for, which takes one more package

        def _info(self):
            image = tfds.features.Image(shape=(64, 64, 3))
            features = tfds.features.Sequence(
                {
                    "image_main": image,
                    "image_aux1": image,
                    "action": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                    "endeffector_pos": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                },
                length=30,
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: enumerate(examples) for split, examples in content.items()}

        def _generate_examples(self):
            raise NotImplementedError

    folder = tmp_path_factory.mktemp("bair")
    prepare(BairRobotPushingSmall, folder)
    return folder, content


def test_bair_labels_are_the_actions_that_led_to_the_frames(tmp_path: pathlib.Path, robot) -> None:
    folder, content = robot
    data = load("bair", tmp_path, folder, validation_sequences=1)
    assert {split: len(part) for split, part in data.items()} == {"train": 3, "validation": 1, "test": 2}
    known = {e["image_main"].tobytes(): e["action"] for part in content.values() for e in part}
    actions = np.concatenate([e["action"] for e in content["train"]]).astype(np.float64)
    mean, deviation = actions.mean(axis=0), actions.std(axis=0)
    for recording in (r for part in data.values() for r in part):
        own = (known[recording.frames.tobytes()] - mean) / deviation
        assert recording.labels.shape == (30, 4) and not recording.labels[0].any()
        np.testing.assert_allclose(recording.labels[1:], own[:-1], atol=1e-3)
    train = {r.frames.tobytes() for r in data["train"]}
    assert not train & {r.frames.tobytes() for r in data["validation"]}
    few = load("bair", tmp_path, folder, validation_sequences=1, train_sequences=2, labels="none")
    assert len(few["train"]) == 2 and few["train"][0].labels.shape == (30, 0)


def test_bair_mistakes(tmp_path: pathlib.Path, robot) -> None:
    folder, _ = robot
    with pytest.raises(UserError, match="config.data.bair.labels is 'pose'"):
        load("bair", tmp_path, folder, labels="pose")
    with pytest.raises(UserError, match="asks for 4 training and 1 validation sequences"):
        load("bair", tmp_path, folder, validation_sequences=1, train_sequences=4)
    with pytest.raises(UserError, match="does not hold what `tfds build bair_robot_pushing_small`"):
        load("bair", tmp_path, tmp_path)
    assert bair.led_here(np.arange(6.0).reshape(3, 2)).tolist() == [[0, 0], [0, 1], [2, 3]]


# All of them


@pytest.mark.parametrize("name", ["moving_mnist", "kth", "bair"])
def test_files_that_are_not_there(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(UserError, match=f"The data set {name} needs a folder and none was given"):
        load(name, tmp_path)
    with pytest.raises(UserError, match="There is no folder"):
        load(name, tmp_path, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["moving_mnist", "bair", "stochastic_moving_mnist"])
def test_sizes_that_are_not_there(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(UserError, match=r"has frames of \(64, 64\)"):
        load(name, tmp_path, tmp_path, size=(32, 32))


@pytest.mark.parametrize(
    ("module", "n_past", "clip"),
    [
        (configs.stochastic_moving_mnist, 5, 15),
        (configs.moving_mnist, 10, 20),
        (configs.kth, 10, 20),
        (configs.bair, 2, 12),
    ],
)
def test_configs_have_the_fields_protocol(module, n_past: int, clip: int) -> None:
    config = module.get_config()
    assert (config.n_past, config.clip_length) == (n_past, clip)
    parts = Components.build(config)
    assert parts.model.history == n_past - 1


@pytest.mark.slow
def test_stochastic_moving_mnist_from_the_command_to_the_table(tmp_path: pathlib.Path) -> None:
    section = "--config.data.stochastic_moving_mnist"
    model = [
        f"--config.model.cvae.{k}={v}"
        for k, v in (
            ("frame_features", 8),
            ("label_features", 2),
            ("latent_channels", 4),
            ("decoder_features", 8),
        )
    ]
    run = lambda *arguments: subprocess.run(  # noqa: E731
        [sys.executable, *arguments, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    run(
        "train.py",
        "--config=configs/stochastic_moving_mnist.py",
        "--config.num_epochs=3",
        "--config.batch_size=2",
        f"--config.data.cache={tmp_path / 'cache'}",
        *model,
        f"{section}.train_sequences=4",
        f"{section}.validation_sequences=2",
        f"{section}.test_sequences=2",
    )
    run("evaluate.py", "--checkpoint=last", "--config.eval.best_of=2")
    table = (tmp_path / "run" / "eval" / "table.md").read_text()
    assert "- split: test" in table
    assert "- n_past: 5" in table and "- n_pred: 20, 20" in table
