"""What a clip is conditioned on: images, vectors or nothing for labels, and one or more given frames."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moving_square, same_bits, tiny_config

from cvae_jax.config import Components
from cvae_jax.data.clips import no_labels
from cvae_jax.data.load import load_data
from cvae_jax.evaluation.baselines import Baselines
from cvae_jax.evaluation.evaluate import evaluate
from cvae_jax.evaluation.scores import Scorer
from cvae_jax.generation.generate import Request, generate
from cvae_jax.generation.samples import make_rollout, sample_videos
from cvae_jax.models.interface import init_variables
from cvae_jax.rollout.chunks import Prompt
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.train import train

pytestmark = pytest.mark.usefixtures("small_model")

SIZE = (16, 12)


def with_labels(recording, size):
    """The recording with vectors that tell where the square is, or with none."""
    length = len(recording.frames)
    if size is None:
        return recording
    if size == 0:
        return dataclasses.replace(recording, labels=no_labels(length))
    vectors = np.random.default_rng(0).normal(size=(length, size)).astype(np.float32)
    return dataclasses.replace(recording, labels=vectors)


def config_of(n_past=1, history=0):
    config = tiny_config()
    config.n_past, config.model.cvae.history, config.model.cvae.output = n_past, history, "residual"
    config.clip_length = 5
    config.num_epochs = 1
    return config


def scorer(parts, batch, chunk):
    return Scorer(
        parts.model,
        parts.objective,
        Devices(jax.local_devices()[:1]),
        n_past=parts.n_past,
        batch_size=batch,
        chunk=chunk,
    )


def initial(parts, label_size=None, seed=0):
    return jax.tree.map(jnp.asarray, init_variables(parts.model, seed, SIZE, label_size))


@pytest.mark.parametrize("size", [None, 0, 3], ids=["images", "none", "vectors"])
@pytest.mark.parametrize("mode", ["prior", "posterior"])
def test_what_is_given_is_not_predicted_and_chunks_change_nothing(mode, size):
    parts = Components.build(config_of(n_past=3, history=1))
    recordings = [with_labels(moving_square("c", 12, 3), size), with_labels(moving_square("d", 7, 4), size)]
    variables = initial(parts, size)

    def run(chunk, batch=4, clips=recordings):
        return list(scorer(parts, batch, chunk).run(variables, clips, mode, 7))

    whole = run(64)
    assert [len(s.frames) for s in whole] == [9, 4]
    assert [len(s.scores["psnr"]) for s in whole] == [9, 4]
    for chunk, batch in ((2, 4), (4, 1)):
        for one, other in zip(whole, run(chunk, batch), strict=True):
            assert np.abs(one.frames.astype(int) - other.frames).max() <= 1
            np.testing.assert_allclose(one.scores["psnr"], other.scores["psnr"], atol=1e-3)

    # A prediction sees the first frame, and of the given ones the last and, as history, the one before it.
    for changed, matters in ((0, True), (1, True), (2, True), (5, mode == "posterior")):
        frames = recordings[0].frames.copy()
        frames[changed] = 255 - frames[changed]
        (other,) = run(64, clips=[dataclasses.replace(recordings[0], frames=frames)])
        changed_frames = [t for t in range(9) if (other.frames[t] != whole[0].frames[t]).any()]
        assert bool(changed_frames) == matters
        if changed == 5 and matters:
            assert changed_frames[0] == 2  # frame 5, the third that is predicted


def test_history_ends_where_it_says():
    parts = Components.build(config_of(n_past=4, history=1))
    clip = moving_square("c", 9, 3)
    variables = initial(parts)
    one = scorer(parts, 1, 32)
    (whole,) = one.run(variables, [clip], "prior", 7)
    frames = clip.frames.copy()
    frames[1] = 255 - frames[1]  # neither first, nor previous, nor the one before that
    (other,) = one.run(variables, [dataclasses.replace(clip, frames=frames)], "prior", 7)
    np.testing.assert_array_equal(other.frames, whole.frames)


def test_samples_continue_the_given_frames():
    parts = Components.build(config_of(n_past=3, history=2))
    clip = moving_square("c", 10, 3)
    variables = initial(parts)
    (scored,) = scorer(parts, 1, 32).run(variables, [clip], "prior", 7)
    for chunk in (32, 3):
        options = dataclasses.replace(parts.evaluation, batch_size=1, chunk=chunk)
        own = dataclasses.replace(parts, evaluation=options)
        rollout = make_rollout(own, Devices(jax.local_devices()[:1]))
        ((video, _),) = sample_videos(rollout, variables, [Prompt.of(clip, 3, 0)], 1, 7)
        np.testing.assert_array_equal(video[:3], clip.frames[:3])
        assert np.abs(video[3:].astype(int) - scored.frames).max() <= 1


def test_baselines_start_after_the_given_frames():
    clip = moving_square("c", 8, 3)
    truth = np.float32(clip.frames) / 255
    found = dict(Baselines([moving_square("a", 6, 1)]).predict(clip, 3))
    assert {len(video) for video in found.values()} == {5} and "nearest_pose" in found
    np.testing.assert_array_equal(found["copy_first"], np.repeat(truth[2:3], 5, axis=0))
    np.testing.assert_array_equal(found["copy_previous"], truth[2:-1])
    assert "nearest_pose" not in dict(Baselines([with_labels(clip, 3)]).predict(with_labels(clip, 3)))


@pytest.mark.parametrize("size", [0, 3], ids=["none", "vectors"])
def test_a_run_without_label_images_from_training_to_pictures(data, tmp_path, size, monkeypatch):
    for recordings in data.values():
        recordings[:] = [with_labels(r, size) for r in recordings]
    config = config_of(n_past=2, history=1)
    config.eval.best_of = 2
    config.eval.samples = 1
    state = train(config, tmp_path, jax.local_devices()[:2])
    assert np.isfinite(jax.flatten_util.ravel_pytree(state.params)[0]).all()
    config.num_epochs = 2  # goes on from the checkpoint
    assert int(train(config, tmp_path, extend=True).step) == 2 * int(state.step)
    results = evaluate(config, tmp_path, "last")
    assert results["protocol"]["n_past"] == 2 and results["protocol"]["n_pred"] == [4, 3]
    names = {row["name"] for row in results["rows"]}
    assert {"prior", "posterior", "mean_frame", "copy_first"} <= names and "nearest_pose" not in names
    written = generate(config, tmp_path, Request(clip="c", checkpoint="last"))
    assert all(path.stat().st_size for path in written)
    with pytest.raises(UserError, match="--first and --drive give the model one frame"):
        generate(config, tmp_path, Request(first="a.png", labels="b"))


def test_context_is_always_true_in_training(data, tmp_path):
    """With n_past = clip_length - 1 every step has its true previous frame, whatever is drawn."""
    outcomes = []
    for initial_ratio in (0.0, 1.0):
        config = config_of(n_past=4)
        config.teacher_forcing.kind, config.teacher_forcing.initial = "constant", initial_ratio
        state = train(config, tmp_path / str(initial_ratio), jax.local_devices()[:1])
        outcomes.append(state.params)
    assert same_bits(*outcomes)
    config = config_of(n_past=1)
    config.teacher_forcing.kind, config.teacher_forcing.initial = "constant", 0.0
    other = train(config, tmp_path / "free", jax.local_devices()[:1])
    assert not same_bits(outcomes[0], other.params)


def test_lengths_that_do_not_fit_are_refused(monkeypatch):
    config = config_of(n_past=5)
    with pytest.raises(UserError, match="config.clip_length is 5; give more than config.n_past=5"):
        Components.build(config)
    with pytest.raises(UserError, match="config.model.cvae.history is 1; give less than config.n_past=1"):
        Components.build(config_of(history=1))
    recordings = {"train": [moving_square("a", 9, 1)], "validation": [moving_square("v", 4, 2)]}
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: recordings)
    with pytest.raises(UserError, match="validation recording v of real_clips has 4 frames"):
        load_data(config_of(n_past=4).data, 4)
