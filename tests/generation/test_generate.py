"""Generating: pieces of a video, samples, clips, images, submissions, motion transfer, the script."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, moving_square, tiny_config
from PIL import Image
from small_model import SmallCVAE
from whole_clips import predict

from cvae_jax import config as config_files
from cvae_jax import models
from cvae_jax.config import Components
from cvae_jax.data.dataset import Poses
from cvae_jax.data.datasets import dancer, frame_folder
from cvae_jax.data.datasets.real_clips import read_keypoints
from cvae_jax.data.pose import draw_pose
from cvae_jax.evaluation.scores import Scorer
from cvae_jax.generation import generate as generation
from cvae_jax.generation import submission
from cvae_jax.generation.generate import Request, find_clip, generate
from cvae_jax.generation.samples import Sample, make_rollout, sample_videos
from cvae_jax.generation.transfer import transfer_labels
from cvae_jax.models.cvae import CVAE
from cvae_jax.models.interface import init_variables
from cvae_jax.rollout.chunks import Prompt
from cvae_jax.rollout.noise import EVALUATION_STREAM, clip_noise, derive_keys
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.workdir import FRAMES_FILE
from cvae_jax.training.checkpoint import Checkpoints, Progress, restore_for_evaluation
from cvae_jax.training.state import TrainState

pytestmark = pytest.mark.usefixtures("small_model")

SIZE = (16, 12)


def residual_config():
    """The output that looks at the first frame and its label in every step."""
    config = tiny_config()
    config.model.cvae.output = "residual"
    config.optimizer.ema_decay = 0.0
    return config


@pytest.fixture
def parts():
    return Components.build(residual_config())


@pytest.fixture
def variables(parts):
    """Weights under which noise, label and previous frame show in every frame."""
    variables = init_variables(parts.model, 0, SIZE)
    params = variables["params"]
    params["generator"]["layer_7"]["kernel"] *= 1.5
    params["decoder_fusion"]["layer_5"]["kernel"] *= 2.0
    return variables


@pytest.fixture
def workdir(parts, variables, tmp_path):
    """A run with one checkpoint, that of step 7."""
    return save_run(tmp_path / "run", parts, variables)


def save_run(folder, parts, variables):
    with Checkpoints(folder) as checkpoints:
        state = TrainState.create(variables, parts.optimizer)
        checkpoints.save(7, state, Progress(1), None)
    return folder


def prompt(length=8, seed=3, index=0):
    recording = moving_square("p", length, seed)
    return Prompt.of(recording, 1, index)


def run(parts, variables, prompts, samples=1, seed=0, temperature=1.0, chunk=32, devices=1, batch=8):
    options = dataclasses.replace(parts.evaluation, batch_size=batch, chunk=chunk)
    parts = dataclasses.replace(parts, evaluation=options)
    chosen = Devices(jax.local_devices()[:devices])
    drawn = sample_videos(make_rollout(parts, chosen), variables, prompts, samples, seed, temperature)
    return [sample.frames for sample in drawn]


def apart(one, other):
    return np.abs(one.astype(int) - other.astype(int)).max()


def whole(parts, variables, prompt, sample=0, seed=0):
    """Float frames (T-1, H, W, 3) of one call of `predict`, for the same noise."""
    sample = jnp.asarray([sample], jnp.uint32)
    keys = derive_keys(jnp.uint32(seed), EVALUATION_STREAM, jnp.asarray([prompt.index]), sample)
    noise = clip_noise(keys, parts.model.latent_shape(SIZE))
    roll = jax.jit(lambda v, first, labels: predict(parts.model, v, first, labels, noise))
    return np.asarray(roll(variables, prompt.given[:1], prompt.labels[None]))[:, 0]


# Sampling


def test_pieces_make_the_whole_and_frame_0_is_there_once(parts, variables):
    given = prompt(8, index=5)
    expected = np.rint(255 * whole(parts, variables, given)).astype(np.uint8)
    assert expected.std() > 10 and (np.diff(expected.astype(int), axis=0) != 0).any(axis=(1, 2, 3)).all()
    for chunk in (32, 7, 3, 1):  # 7 steps: one piece, one that fits, a short last one, single steps
        (video,) = run(parts, variables, [given], chunk=chunk)
        assert video.shape == given.labels.shape and video.dtype == np.uint8
        np.testing.assert_array_equal(video[0], given.given[0])
        assert apart(video[1:], expected) <= 1
        assert (video[1:] == expected).mean() > 0.99  # rounded, not cut off
        assert apart(video[1], given.given[0]) > 1


def test_one_program_serves_all_pieces(parts, variables):
    traced = []

    class Counted(SmallCVAE):
        def imagine(self, variables, constants, carry, x):
            traced.append(x.previous.shape)
            return super().imagine(variables, constants, carry, x)

    counted = Counted(**dataclasses.asdict(parts.model))
    parts = dataclasses.replace(parts, model=counted)
    run(parts, variables, [prompt(6)], chunk=5)
    once = len(traced)
    traced.clear()
    run(parts, variables, [prompt(11), prompt(4)], samples=3, chunk=3, batch=2)
    assert once > 0 and len(traced) == once


def test_a_sample_depends_on_its_number_only(parts, variables):
    given = prompt(6)
    three = run(parts, variables, [given], samples=3)
    assert min(apart(three[a][1:], three[b][1:]) for a, b in ((0, 1), (0, 2), (1, 2))) > 3
    for other in (
        run(parts, variables, [given], samples=1),
        run(parts, variables, [given], samples=3, batch=2),
        run(parts, variables, [given], samples=3, devices=4),
    ):
        assert max(apart(a, b) for a, b in zip(three, other)) <= 1
    (another_seed,) = run(parts, variables, [given], seed=1)
    assert apart(another_seed[1:], three[0][1:]) > 3
    cold = run(parts, variables, [given], samples=2, temperature=0.0)
    np.testing.assert_array_equal(*cold)


def test_prompts_of_different_lengths_keep_to_themselves(parts, variables):
    prompts = [prompt(4, 1, 0), prompt(9, 2, 1), prompt(6, 3, 2)]
    together = run(parts, variables, prompts, samples=2, batch=4, chunk=3)
    assert [len(v) for v in together] == [4, 4, 9, 9, 6, 6]
    alone = [v for p in prompts for v in run(parts, variables, [p], samples=2)]
    assert max(apart(a, b) for a, b in zip(together, alone, strict=True)) <= 1


# Requests


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "Nothing to generate; give --first"),
        ({"first": "a.png"}, "--first and --labels go together"),
        ({"drive": "a"}, "--person and --drive go together"),
        ({"clip": "a", "csv": "b"}, "--clip and --csv cannot go together"),
        ({"csv": "b", "samples": 2}, "a submission holds one"),
        ({"clip": "a", "samples": 0}, "--samples is 0"),
        ({"clip": "a", "seed": -1}, "--seed is -1"),
        ({"clip": "a", "temperature": float("nan")}, "--temperature is nan"),
        ({"clip": "a", "fps": 0.0}, "--fps is 0"),
    ],
)
def test_nonsense_is_refused(fields, named):
    with pytest.raises(UserError, match=named):
        Request(**fields)


def test_find_clip_prefers_names_and_validation(data):
    assert find_clip(data, "c", "--clip") == (data["validation"][0], 0)
    assert find_clip(data, "b", "--clip") == (data["train"][1], 1)
    one = {"train": data["train"], "validation": data["validation"][1:]}
    assert find_clip(one, "square", "--clip") == (data["validation"][1], 0)
    with pytest.raises(UserError, match="scene with several clips; give one of c, d"):
        find_clip(data, "square", "--clip")
    with pytest.raises(UserError, match="--drive=x names no clip .* give one of c, d, a, b"):
        find_clip(data, "x", "--drive")


# What is generated


@pytest.fixture
def loaded(data, monkeypatch):
    return data


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, by file name, while it is drawn."""
    seen = {}
    for module, name in (
        (generation.figures, "save_gif"),
        (generation.video, "save_mp4"),
        (generation.figures, "save_strip"),
    ):

        def save(path, columns, *args, save=getattr(module, name), **kwargs):
            seen[path.name] = columns
            save(path, columns, *args, **kwargs)

        monkeypatch.setattr(module, name, save)
    return seen


@pytest.mark.parametrize("noise_correlation", [0.0, 0.9])
def test_a_clip_is_generated_as_evaluation_scores_it(
    loaded, workdir, variables, parts, drawn, noise_correlation
):
    config = residual_config()
    config.eval.noise_correlation = noise_correlation
    device = jax.local_devices()[:1]
    written = generate(config, workdir, Request(clip="d", samples=2), device)
    assert [p.relative_to(workdir).as_posix() for p in written] == [
        "generated/generated.gif",
        "generated/generated.mp4",
        "generated/generated_strip.png",
    ]
    scorer = Scorer(
        parts.model,
        parts.objective,
        Devices(device),
        n_past=1,
        batch_size=2,
        chunk=32,
        noise_correlation=noise_correlation,
    )
    clip = loaded["validation"][1]
    for columns in drawn.values():
        assert list(columns) == ["label", "sample 0", "sample 1", "truth"]
        np.testing.assert_array_equal(columns["truth"], clip.frames)
        np.testing.assert_array_equal(columns["label"], clip.labels)
        for sample in (0, 1):
            rolled = scorer.run(variables, loaded["validation"], "prior", 0, range(2), frames_of=range(2))
            (scored,) = (s for s in rolled if (s.clip, s.sample) == (1, sample))
            video = columns[f"sample {sample}"]
            np.testing.assert_array_equal(video[0], clip.frames[0])
            assert apart(video[1:], scored.frames) <= 1
    with Image.open(written[0]) as gif:
        assert gif.n_frames == 5
    assert len(iio.imread(written[1], plugin="pyav")) == 5


@pytest.mark.parametrize(
    "fields, told",
    [(dict(samples=2), True), (dict(samples=1), False), (dict(samples=2, temperature=0.0), False)],
)
def test_samples_that_coincide_are_told(loaded, workdir, parts, monkeypatch, capsys, fields, told):
    """The latent of this model changes nothing; at temperature 0 that is no news."""
    still = np.zeros((5, 16, 12, 3), np.uint8)
    drawn = lambda *arguments, **_: [Sample(still, {})] * arguments[3]  # noqa: E731
    monkeypatch.setattr(generation, "sample_videos", drawn)
    generate(residual_config(), workdir, Request(clip="d", **fields), jax.local_devices()[:1])
    captured = capsys.readouterr()
    assert ("The samples coincide: the latent does not change the video." in captured.err) == told
    assert captured.out == ""


def test_averaged_parameters_are_taken_where_they_are_kept(tmp_path, variables):
    config = residual_config()
    config.optimizer.ema_decay = 0.5
    parts = Components.build(config)
    state = TrainState.create(variables, parts.optimizer)
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, Progress(2), None)
    restored, step, progress = restore_for_evaluation(
        parts.model, tmp_path, "last", SIZE, None, averaged=True
    )
    assert step == 3 and progress.epoch == 2
    jax.tree.map(np.testing.assert_array_equal, restored["params"], state.ema)
    with pytest.raises(UserError, match="choose best, last or one of the steps 3"):
        restore_for_evaluation(parts.model, tmp_path, "4", SIZE, None, averaged=True)


def test_a_checkpoint_of_another_model_is_refused_naming_what_differs(workdir):
    wider = dataclasses.replace(Components.build(residual_config()).model, decoder_features=16)
    with pytest.raises(UserError, match="another model .* of shape .* it holds an array of shape"):
        restore_for_evaluation(wider, workdir, "last", SIZE, None, averaged=False)
    vectors = Components.build(residual_config()).model
    with pytest.raises(UserError, match="cannot be restored|it holds nothing"):
        restore_for_evaluation(vectors, workdir, "last", SIZE, 5, averaged=False)


def save_images(folder, count, size=(30, 20), numbers=None):
    """Noisy PNGs of (width, height) named by numbers, written in another order than they count."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count + len(str(folder)))
    for number in reversed(numbers or range(count)):
        pixels = rng.integers(0, 255, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / f"frame{number}.png")
    return folder


def test_images_of_any_size_are_resized_to_the_runs(workdir, drawn, tmp_path):
    config = residual_config()
    config.data.frame_size = SIZE
    labels = save_images(tmp_path / "labels", 12)
    first = save_images(tmp_path / "first", 1, (50, 31)) / "frame0.png"
    out = tmp_path / "out"
    request = Request(first=str(first), labels=str(labels), out=str(out), checkpoint="7", samples=1)
    generate(config, workdir, request, jax.local_devices()[:1])
    columns = drawn["generated.gif"]
    assert list(columns) == ["label", "generated"] and len(columns["generated"]) == 12
    size = (SIZE[1], SIZE[0])
    for t in range(12):  # 10 comes after 9
        with Image.open(labels / f"frame{t}.png") as image:
            expected = image.resize(size, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(columns["label"][t], expected)
    with Image.open(first) as image:
        expected = image.resize(size, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(columns["generated"][0], expected)
    assert sorted(p.name for p in out.iterdir()) == ["generated.gif", "generated.mp4", "generated_strip.png"]


def test_images_that_do_not_fit_are_refused(workdir, tmp_path):
    config = residual_config()
    config.data.frame_size = SIZE
    labels = save_images(tmp_path / "labels", 3)
    alone = save_images(tmp_path / "alone", 1)
    first = alone / "frame0.png"

    def refused(named, first=first, labels=labels, **fields):
        with pytest.raises(UserError, match=named):
            generate(config, workdir, Request(first=str(first), labels=str(labels), **fields))

    refused("There is no file", first=tmp_path / "none.png")
    refused("There is no folder", labels=tmp_path / "none")
    refused("holds one label", labels=alone)
    refused("cannot be read as an image", first=_broken(tmp_path / "broken.png"))
    refused("give --out another place", out=str(first))
    save_images(tmp_path / "mixed", 1)
    Image.new("RGB", (8, 8)).save(tmp_path / "mixed" / "frame1.png")
    refused("8 x 8 pixels, while frame0.png beside it is 30 x 20", labels=tmp_path / "mixed")


def _broken(path):
    path.write_bytes(b"\x89PNG nothing")
    return path


# The submission


def test_submission_is_what_a_direct_computation_gives(workdir, parts, variables, tmp_path):
    config = residual_config()
    config.eval.batch_size = 2
    config.data.update(name="frame_folder", dir=str(tmp_path), frame_size=SIZE)
    lengths = {0: 4, 2: 6, 10: 3}
    for number, length in lengths.items():
        save_images(tmp_path / f"test/test_label/{number}", length)
        save_images(tmp_path / f"test/test_img/{number}", 2, numbers=[3, 12])
    path = tmp_path / "new" / "submission.csv"
    written = generate(config, workdir, Request(csv=str(path)), jax.local_devices()[:1])
    assert [p.name for p in written] == ["submission.csv", "test_0.gif", "test_2.gif", "test_10.gif"]
    with Image.open(written[2]) as gif:
        assert gif.n_frames == 6
    lines = path.read_text().splitlines()
    values = 3 * SIZE[0] * SIZE[1]
    assert lines[0] == "id," + ",".join(str(i) for i in range(values))
    table = np.array([[int(x) for x in line.split(",")] for line in lines[1:]])
    assert table.shape == (sum(lengths.values()), 1 + values)
    np.testing.assert_array_equal(table[:, 0], np.arange(len(table)))
    begin = 0
    for index, (number, length) in enumerate(lengths.items()):
        first, _ = frame_folder.read_image(tmp_path / f"test/test_img/{number}/frame3.png", SIZE)
        labels = frame_folder.read_folder(tmp_path / f"test/test_label/{number}", SIZE)
        frames = whole(parts, variables, Prompt("", first[None], labels, index))
        video = np.concatenate([first[None], np.clip(np.rint(255 * frames), 0, 255)])
        expected = np.moveaxis(video, -1, 1).reshape(length, -1)
        rows = table[begin : begin + length, 1:]
        np.testing.assert_array_equal(rows[0], expected[0])
        assert apart(rows, expected) <= 1
        begin += length


def test_submission_of_a_test_split(loaded, workdir, tmp_path):
    config = residual_config()
    path = tmp_path / "s.csv"
    path.write_text("old")
    with pytest.raises(UserError, match="the data set real_clips has none"):
        generate(config, workdir, Request(csv=str(path)))
    assert path.read_text() == "old"
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        generate(config, workdir, Request(csv=str(tmp_path)))
    loaded["test"] = [moving_square("e", 4, 6), moving_square("f", 3, 7)]
    generate(config, workdir, Request(csv=str(path)), jax.local_devices()[:2])
    rows = path.read_text().splitlines()[1:]
    assert len(rows) == 7
    given = loaded["test"][1].frames[0].transpose(2, 0, 1).ravel()
    assert rows[4] == "4," + ",".join(map(str, given))


def test_test_folders_that_do_not_fit_are_refused(workdir, tmp_path):
    config = residual_config()
    config.data.update(name="frame_folder", frame_size=SIZE)

    def refused(named):
        with pytest.raises(UserError, match=named):
            submission.read_prompts(config, SIZE)

    refused("add --config.data.dir=FOLDER")
    config.data.dir = str(tmp_path)
    refused("There is no folder .*test_img: --csv needs a folder per sequence")
    (tmp_path / "test/test_img").mkdir(parents=True)
    (tmp_path / "test/test_label").mkdir()
    refused("test_img has no folders named by numbers")
    save_images(tmp_path / "test/test_img/0", 1)
    save_images(tmp_path / "test/test_label/1", 2)
    refused("test_label lacks the sequence 0")


def test_a_submission_has_the_runs_own_frame_size(workdir, tmp_path, parts):
    """Whatever the data set of the test sequences has by default."""
    (workdir / FRAMES_FILE).write_text("[16, 12]")
    for kind in ("test_img", "test_label"):
        save_images(tmp_path / "lab/test" / kind / "0", 3)
    config = residual_config()
    config.data.update(name="frame_folder", dir=str(tmp_path / "lab"), frame_size=None)
    table = tmp_path / "out.csv"
    generate(config, workdir, Request(csv=str(table)))
    assert len(table.read_text().splitlines()[1].split(",")) == 1 + 3 * 16 * 12


def test_two_folders_of_one_number_are_refused(workdir, tmp_path):
    for kind in ("test_img", "test_label"):
        for name in ("1", "01"):
            (tmp_path / "lab/test" / kind / name).mkdir(parents=True)
    config = residual_config()
    config.data.name, config.data.dir = "frame_folder", str(tmp_path / "lab")
    with pytest.raises(UserError, match="have the same number 1: rename or remove one"):
        generate(config, workdir, Request(csv=str(tmp_path / "out.csv")))


def test_a_failed_submission_leaves_the_old_one(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("old")
    good = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError):
        submission.write_csv(path, [good, np.zeros((2, 4), np.uint8)])
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# Motion transfer


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    from cvae_jax.data import datasets

    cache = tmp_path_factory.mktemp("cache")
    return datasets.load("real_clips", data_dir=None, cache_dir=str(cache), frame_size=None)


def test_a_person_driven_by_itself_has_its_own_labels(real):
    poses, every = Poses.of_scenes(read_keypoints), [*real["train"], *real["validation"]]
    for clip in real["validation"]:
        np.testing.assert_array_equal(transfer_labels(poses, every, clip, clip), clip.labels)


def test_a_dancers_motion_is_drawn_as_the_dancers_labels(tmp_path):
    options = dancer.Options(train_frames=3, validation_frames=6, test_sequences=2, test_frames=5)
    where = {"data_dir": None, "frame_size": (32, 48), "options": options}
    data = dancer.load(cache_dir=str(tmp_path), **where)
    poses = dancer.poses(**where)
    every = [one for split in data.values() for one in split]
    for clip in every:
        drawn = [draw_pose(pose, frame_size=(32, 48), style=poses.style) for pose in poses.keypoints(clip)]
        np.testing.assert_array_equal(drawn, clip.labels)
        np.testing.assert_array_equal(transfer_labels(poses, every, clip, clip), clip.labels)


def test_transfer_starts_from_the_person_and_continues_with_the_driver(real, workdir, monkeypatch, drawn):
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: real)
    request = Request(person="beam_cam2", drive="star_jump")
    written = generate(residual_config(), workdir, request, jax.local_devices()[:1])
    assert [p.name for p in written] == ["transfer.gif", "transfer.mp4", "transfer_strip.png"]
    columns = drawn["transfer.gif"]
    assert list(columns) == ["driver", "its label", "normalised", "generated"]
    (person, _), (driver, _) = (find_clip(real, n, "") for n in ("beam_cam2", "star_jump"))
    np.testing.assert_array_equal(columns["driver"], driver.frames)
    np.testing.assert_array_equal(columns["generated"][0], person.frames[0])
    np.testing.assert_array_equal(columns["normalised"][0], person.labels[0])
    body = [(image.max(axis=-1) > 60).any(axis=1).sum() for image in columns["normalised"][1:]]
    own = [(image.max(axis=-1) > 60).any(axis=1).sum() for image in driver.labels[1:]]
    assert max(body) < 0.6 * max(own)  # the man on the beam is less than half as high


def test_transfer_without_keypoints_is_refused(workdir):
    config = residual_config()
    config.data.name = "frame_folder"
    with pytest.raises(UserError, match="the data set frame_folder has label images only"):
        generate(config, workdir, Request(person="a", drive="b"))


# Masks


def test_masks_say_what_a_sample_copies(loaded, drawn, tmp_path):
    config = residual_config()
    config.model.kind = "multiscale"
    config.model.multiscale.update(widths=(4, 8), feedback=1)
    parts = Components.build(config)
    workdir = save_run(tmp_path / "run", parts, init_variables(parts.model, 0, SIZE))
    generate(config, workdir, Request(clip="d", samples=2, masks=True), jax.local_devices()[:1])
    columns = drawn["generated.gif"]
    assert list(columns) == ["label", "sample 0", "sample 1", "from context", "from previous", "truth"]
    for name in ("from context", "from previous"):
        mask = columns[name]
        assert mask.shape == columns["truth"].shape and mask.dtype == np.uint8
        assert not mask[0].any() and mask[1:].min() > 0 and mask[1:].max() < 255
        np.testing.assert_array_equal(mask, np.repeat(mask[..., :1], 3, axis=-1))


def test_masks_of_a_model_that_has_none_are_refused(loaded, workdir):
    with pytest.raises(UserError, match="--masks .* config.model.kind=cvae draws them whole"):
        generate(residual_config(), workdir, Request(clip="d", masks=True), jax.local_devices()[:1])


# The script


def test_the_script(environment, monkeypatch, tmp_path):
    monkeypatch.setitem(models.KINDS, "cvae", CVAE)
    config = tiny_config()
    config.optimizer.ema_decay = 0.0
    config.data.frame_size = SIZE
    parts = Components.build(config)
    workdir = save_run(tmp_path / "run ä", parts, init_variables(parts.model, 0, SIZE))
    config_files.save(config, workdir)
    labels = save_images(tmp_path / "labels", 3)

    def run_generate(*flags):
        command = [sys.executable, "generate.py", f"--workdir={workdir}", *flags]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    flags = [f"--first={labels / 'frame0.png'}", f"--labels={labels}", f"--out={tmp_path / 'out'}"]
    done = run_generate(*flags, "--samples=2", "--config.eval.batch_size=1")
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_file() for line in done.stdout.splitlines())  # nothing but what was written
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "generated_strip.png")
    assert all((tmp_path / "out" / f"generated.{kind}").stat().st_size for kind in ("gif", "mp4"))
    wrong = run_generate("--clip=star_jump", "--csv=a.csv")
    assert wrong.returncode == 2
    (sentence,) = [line for line in wrong.stderr.splitlines() if line.startswith("error: ")]
    assert "--clip and --csv cannot go together" in sentence and "Traceback" not in wrong.stderr
