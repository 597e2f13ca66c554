"""Rollouts in chunks: batches and their padding, what a model sees, and what is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.data.clips import Recording
from cvae_jax.models.interface import StepOutputs, VideoModel, standard_normal
from cvae_jax.rollout.chunks import PRIOR, ChunkedRollout, Prompt
from cvae_jax.runtime.devices import Devices

SIZE = (2, 3)
LENGTHS = (5, 2, 7)


@dataclasses.dataclass(frozen=True)
class Counter(VideoModel):
    """Adds one step of 255 to the previous frame; the carry counts the steps the clip has taken."""

    def latent_shape(self, frame_size):
        return (2,)

    def init(self, seed, frame_size, label_size):
        return {"params": {}}

    def begin(self, variables, given, labels, train):
        return {}, {"steps": jnp.zeros(len(given))}

    def observe(self, variables, constants, carry, x, train):
        normal = standard_normal(x.noise)
        outputs = StepOutputs(x.previous + 1 / 255, normal, normal)
        return outputs, {"steps": carry["steps"] + 1}, variables["batch_stats"]

    def imagine(self, variables, constants, carry, x):
        assert x.target is None, "the prior must not see the target"
        outputs = StepOutputs(x.previous + 1 / 255, standard_normal(x.noise))
        return outputs, {"steps": carry["steps"] + 1}


def keep(outputs, target):
    assert target is None, "what is kept of the prior's steps must not depend on the target"
    return {"brightness": outputs.frame.mean(axis=(1, 2, 3))}, {"count": jnp.ones(len(outputs.raw))}


def measured(devices, seen):
    """A measure that notes the shapes it is given."""

    def measure(_, batch, __):
        truth = batch["videos"][batch["owner"]].astype(jnp.float32) / 255
        return {"error": jnp.abs(batch["frames"] - truth).mean(axis=(2, 3, 4))}

    mapped = devices.map_clips(measure)

    def noting(batch):
        seen.append({name: value.shape for name, value in batch.items()})
        return mapped({}, batch, {})

    return noting


def recording(number):
    """Frame t is t brighter than the first one, in steps of 255."""
    frames = np.full((LENGTHS[number], *SIZE, 3), 10 * number, np.uint8)
    frames += np.arange(LENGTHS[number], dtype=np.uint8)[:, None, None, None]
    return Recording("scene", f"r{number}", 0, frames, frames)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("devices", [1, 4])
def test_rows_come_back_in_order_each_with_its_own_length(batch_size, chunk, devices):
    chosen = Devices(jax.local_devices()[:devices])
    seen = []
    rollout = ChunkedRollout(
        Counter(),
        chosen,
        PRIOR,
        n_past=1,
        batch_size=batch_size,
        chunk=chunk,
        keep=keep,
        measure=measured(chosen, seen),
    )
    prompts = [Prompt.of(recording(i), 1, i, scored=True) for i in range(3)]
    rows = [(p, s) for s in range(2) for p in range(3)]  # in any order
    predicted = []
    found = list(
        rollout.run(
            {"params": {}, "batch_stats": {}},
            prompts,
            rows,
            seed=0,
            frames_of=(1,),
            progress=predicted.append,
        )
    )
    assert [(r.prompt, r.sample) for r in found] == rows
    assert sum(predicted) == 2 * sum(length - 1 for length in LENGTHS)
    for rolled in found:
        truth = recording(rolled.prompt).frames[1:]
        np.testing.assert_allclose(rolled.values["error"], np.zeros(len(truth)), atol=1e-6)
        brightness = truth.mean(axis=(1, 2, 3)) / 255
        np.testing.assert_allclose(rolled.values["brightness"], brightness, atol=1e-6)
        assert rolled.sums["count"] == len(truth)  # frames that fill a clip up are not summed
        assert (rolled.frames is not None) == (rolled.sample == 1)
        if rolled.frames is not None:
            np.testing.assert_array_equal(rolled.frames, truth)


def test_a_measure_sees_each_true_video_once_for_all_samples_of_it():
    one = Devices(jax.local_devices()[:1])
    prompts = [Prompt.of(recording(i), 1, i, scored=True) for i in range(3)]
    shapes = {}
    for name, rows in (
        ("clip after clip", [(p, s) for p in range(3) for s in range(6)]),
        ("sample after sample", [(p, s) for s in range(6) for p in range(3)]),
    ):
        seen = []
        rollout = ChunkedRollout(
            Counter(), one, PRIOR, n_past=1, batch_size=4, chunk=64, measure=measured(one, seen)
        )
        for rolled in rollout.run({"params": {}, "batch_stats": {}}, prompts, rows, seed=0):
            np.testing.assert_allclose(rolled.values["error"], 0, atol=1e-6)
        (shapes[name],) = {shape["videos"][1] for shape in seen}  # one program
        assert {shape["frames"][1] for shape in seen} == {4}
    assert shapes == {"clip after clip": 2, "sample after sample": 3}


def test_context_frames_are_run_through_the_model_first():
    """Three given frames: two steps before the first that counts, from which the prediction continues."""
    one = Devices(jax.local_devices()[:1])
    rollout = ChunkedRollout(Counter(), one, PRIOR, n_past=3, batch_size=1, chunk=2)
    started = []
    begin = rollout._begin
    rollout._begin = lambda *a: started.append(begin(*a)) or started[-1]
    (rolled,) = rollout.run({"params": {}, "batch_stats": {}}, [Prompt.of(recording(2), 3, 0)], [(0, 0)], 0)
    assert np.asarray(started[0]["state"].carry["steps"]).ravel().tolist() == [2.0]
    np.testing.assert_array_equal(rolled.frames, recording(2).frames[3:])


class ShowsNoise(Counter):
    """Predicts a frame as bright as its noise."""

    def latent_shape(self, frame_size):
        return (*frame_size, 3)

    def observe(self, variables, constants, carry, x, train):
        return *self.imagine(variables, constants, carry, x), variables["batch_stats"]

    def imagine(self, variables, constants, carry, x):
        normal = standard_normal(x.noise)
        return StepOutputs(0.5 + 0.1 * x.noise, normal, normal), carry


def test_correlated_noise_changes_how_samples_of_the_prior_move_and_nothing_else():
    frames = np.zeros((60, *SIZE, 3), np.uint8)
    prompts = [Prompt.of(Recording("scene", f"r{i}", 0, frames, frames), 1, i, scored=True) for i in range(5)]
    rows = [(p, s) for p in range(5) for s in range(8)]

    def videos(correlation, mode=PRIOR, chunk=64, batch_size=40, devices=1, temperature=1.0):
        rollout = ChunkedRollout(
            ShowsNoise(),
            Devices(jax.local_devices()[:devices]),
            mode,
            n_past=1,
            batch_size=batch_size,
            chunk=chunk,
            keep=lambda outputs, target: ({}, {}),
            noise_correlation=correlation,
        )
        found = rollout.run({"params": {}, "batch_stats": {}}, prompts, rows, 0, temperature)
        return np.stack([rolled.frames for rolled in found]).astype(float)

    for correlation in (0.0, 0.9):
        found = videos(correlation)
        for options in (dict(chunk=7), dict(chunk=1, batch_size=9), dict(chunk=16, devices=4)):
            assert np.abs(videos(correlation, **options) - found).max() <= 1
        np.testing.assert_allclose(found.std(), 25.5, rtol=0.05)
        changes = np.mean(np.diff(found, axis=1) ** 2)
        np.testing.assert_allclose(changes, 2 * (1 - correlation) * 25.5**2, rtol=0.05)
    assert np.all(videos(0.9, temperature=0.0) == 128)
    np.testing.assert_array_equal(videos(0.9, "posterior"), videos(0.0, "posterior"))


def test_the_posterior_needs_the_frames():
    one = Devices(jax.local_devices()[:1])
    rollout = ChunkedRollout(Counter(), one, "posterior", n_past=1, batch_size=1, chunk=2)
    with pytest.raises(ValueError, match="give prompts with their frames"):
        list(rollout.run({"params": {}, "batch_stats": {}}, [Prompt.of(recording(0), 1, 0)], [(0, 0)], 0))
