"""Rollouts in chunks: the numbers of one long scan, memory that does not grow with T, latents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moving_square, tiny_config
from whole_clips import predict, reconstruct

from cvae_jax.config import Components
from cvae_jax.data.clips import Recording
from cvae_jax.evaluation.diversity import coincide, psnr_between
from cvae_jax.evaluation.latents import (
    SAMPLES,
    Collected,
    active_units,
    correlation_of_successive_frames,
)
from cvae_jax.evaluation.measures import Measures
from cvae_jax.evaluation.rows import Samples
from cvae_jax.evaluation.scores import Moments, Scored, Scorer, _keep_scores
from cvae_jax.evaluation.validation import FIELDS, summary
from cvae_jax.metrics import psnr_per_frame
from cvae_jax.models.interface import Gaussian, StepOutputs, VideoModel, init_variables
from cvae_jax.rollout.noise import EVALUATION_STREAM, clip_noise, derive_keys
from cvae_jax.rollout.scan import Clips
from cvae_jax.runtime.devices import Devices

pytestmark = pytest.mark.usefixtures("small_model")

SIZE = (16, 12)


@pytest.fixture
def parts():
    config = tiny_config()
    config.model.cvae.output = "residual"  # its reference is the clip's first frame, not the chunk's
    return Components.build(config)


def initial(parts):
    return jax.tree.map(jnp.asarray, init_variables(parts.model, 0, SIZE))


def scorer(parts, batch, chunk, count=1, measures=Measures(ssim=True)):
    return Scorer(
        parts.model,
        parts.objective,
        Devices(jax.local_devices()[:count]),
        n_past=parts.n_past,
        batch_size=batch,
        chunk=chunk,
        measures=measures,
    )


def rolled(parts, recordings, mode, chunk, batch=4, count=1, **keywords):
    variables = initial(parts)
    return list(scorer(parts, batch, chunk, count).run(variables, recordings, mode, 7, **keywords))


@pytest.mark.parametrize("mode", ["prior", "posterior"])
def test_chunks_give_the_numbers_of_one_long_scan(parts, mode):
    recordings = [moving_square("c", 12, 3)]
    model, clip = parts.model, recordings[0]
    variables = initial(parts)
    keys = derive_keys(jnp.uint32(7), EVALUATION_STREAM, jnp.array([0], jnp.uint32), jnp.uint32(0))
    noise = clip_noise(keys, model.latent_shape(SIZE))
    frames, labels = jnp.asarray(clip.frames[None]), jnp.asarray(clip.labels[None])
    if mode == "prior":
        expected = predict(model, variables, frames[:, 0], labels, noise)[:, 0]
    else:
        clips = Clips(frames, labels, jnp.ones(1))
        expected = reconstruct(model, variables, clips, noise, jnp.zeros(11, bool))[0][:, 0]
    psnr = psnr_per_frame(expected, jnp.asarray(clip.frames[1:], jnp.float32) / 255)
    for chunk in (64, 11, 4, 3, 1):
        (scored,) = rolled(parts, recordings, mode, chunk)
        assert scored.frames.shape == (11, *SIZE, 3)
        assert np.abs(scored.frames - 255 * np.asarray(expected)).max() <= 0.51
        np.testing.assert_allclose(scored.scores["psnr"], psnr, atol=1e-3)


def test_what_the_posterior_says_does_not_depend_on_chunks_or_padding(parts):
    recordings = [moving_square("c", 9, 3), moving_square("d", 5, 4)]
    whole = rolled(parts, recordings, "posterior", 64)
    for chunk, batch, count in ((3, 2, 1), (8, 1, 1), (2, 2, 2)):
        for a, b in zip(whole, rolled(parts, recordings, "posterior", chunk, batch, count), strict=True):
            assert a.scores.keys() == b.scores.keys() >= {"recon", "kl", "kl_nats", "ssim"}
            for name, values in a.scores.items():
                np.testing.assert_allclose(values, b.scores[name], rtol=1e-4, atol=1e-5)
            assert a.moments.count == b.moments.count == len(a.recording.frames) - 1
            for name in ("first", "second"):
                np.testing.assert_allclose(
                    getattr(a.moments, name), getattr(b.moments, name), rtol=1e-4, atol=1e-4
                )
    # The KL per element, times the elements, is the KL in nats.
    elements = np.prod(parts.model.latent_shape(SIZE))
    np.testing.assert_allclose(whole[0].scores["kl_nats"], whole[0].scores["kl"] * elements, rtol=1e-5)


def test_memory_does_not_grow_with_the_length(parts):
    """What a call is given, needs and returns is the same for clips of 16, 64 and 630 frames."""
    chunk = 5  # 3, 13 and 126 calls of 5 frames
    variables = initial(parts)
    sizes = {}

    for length in (16, 64, 630):
        recordings = [moving_square("c", length, 3)]
        own = scorer(parts, 1, chunk)
        compiled, arguments = {}, {}

        for mode in ("prior", "posterior"):
            mapped = own.rollouts[mode]._advance

            def measured(*given, mapped=mapped, mode=mode):
                arguments.setdefault(mode, set()).add(str(jax.tree.map(jnp.shape, given)))
                if mode not in compiled:
                    compiled[mode] = mapped.lower(*given).compile().memory_analysis()
                return mapped(*given)

            own.rollouts[mode]._advance = measured
            list(own.run(variables, recordings, mode, 0))
            assert len(arguments[mode]) == 1  # one program
            sizes[length, mode] = compiled[mode]

    for mode in ("prior", "posterior"):
        for field in ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes"):
            assert len({getattr(sizes[length, mode], field) for length in (16, 64, 630)}) == 1


def test_a_sample_is_the_same_however_many_are_drawn(parts):
    recordings = [moving_square("c", 6, 3), moving_square("d", 5, 4)]
    few = rolled(parts, recordings, "prior", 64, samples=range(3))
    assert [(s.sample, s.clip) for s in few] == [(n, c) for c in range(2) for n in range(3)]
    assert [s.frames is not None for s in few] == [s.sample == 0 for s in few]
    for batch, count in ((1, 1), (5, 1), (3, 2)):
        many = rolled(parts, recordings, "prior", 2, batch, count, samples=range(7))
        for a, b in zip(few, [s for s in many if s.sample < 3], strict=True):
            assert (a.sample, a.clip) == (b.sample, b.clip)
            np.testing.assert_allclose(a.scores["psnr"], b.scores["psnr"], atol=1e-3)
    assert len({tuple(s.scores["psnr"].round(3)) for s in few}) == 6  # and none is another


def test_temperature_scales_the_noise_and_zero_is_the_mean(parts):
    recordings = [moving_square("c", 6, 3)]
    (cold, other) = rolled(parts, recordings, "prior", 64, samples=range(2), temperature=0.0)
    np.testing.assert_array_equal(cold.scores["psnr"], other.scores["psnr"])
    (warm,) = rolled(parts, recordings, "prior", 64, temperature=1.0)
    assert not np.allclose(warm.scores["psnr"], cold.scores["psnr"])


def test_best_of_n_is_chosen_per_clip_and_metric():
    clip = moving_square("c", 3, 1)
    nan = np.nan
    values = {
        "psnr": [[10, 20], [18, 16], [30, 1], [99, 99]],
        "ssim": [[0.9, 0.9], [0.1, 0.2], [0.5, 0.5], [1, 1]],
        "lpips": [[0.3, 0.1], [0.2, 0.2], [0.1, 0.2], [0, 0]],
        "psnr_person": [[nan, 20], [nan, 16], [nan, 21], [nan, 99]],
    }
    samples = Samples("square", averaged=2, best_of=3)
    for n in range(4):
        scores = {name: np.array(of_draws[n], np.float32) for name, of_draws in values.items()}
        samples.add(Scored(0, clip, None, scores | {"recon": np.zeros(2, np.float32)}, n))
    np.testing.assert_allclose(samples.mean.values["psnr"], [14, 18])
    assert [draw["psnr"] for draw in samples.mean.draws] == [15.0, 17.0]
    assert [draw["ssim"] for draw in samples.mean.draws] == pytest.approx([0.9, 0.15])
    # Means 15, 17 and 15.5; the fourth is not asked.
    best = samples.best.values
    assert best.keys() == values.keys()
    np.testing.assert_allclose(best["psnr"], [18, 16])
    np.testing.assert_allclose(best["ssim"], [0.9, 0.9])
    np.testing.assert_allclose(best["lpips"], [0.1, 0.2])  # the smallest
    np.testing.assert_array_equal(best["psnr_person"], [nan, 21])


def test_active_units_are_those_whose_mean_varies_over_frames():
    mu = np.zeros((4, 2, 1, 2))
    mu[:, 0, 0, 0] = [-1, 1, -1, 1]  # variance 1
    mu[:, 1, 0, 1] = 5.0  # far from zero, but always
    mu[:, 1, 0, 0] = [0.0, 0.1, 0.0, 0.1]  # variance 0.0025
    one, other = (Moments(2, part.sum(0), (part**2).sum(0), 0.0, 0.0) for part in (mu[:2], mu[2:]))
    moments = one + other
    assert active_units(moments) == (1, 4)
    assert active_units(moments, threshold=0.002) == (2, 4)


class SeesBrightness(VideoModel):
    """Element k of its posterior has the mean of the target's row k; its prior sees nothing."""

    prior_mean = np.float32([0.5, 0.1, 0.9])
    prior_std = np.float32([0.2, 0.5, 0.1])

    def latent_shape(self, frame_size):
        return (3,)

    def init(self, seed, frame_size, label_size):
        return {"params": {}}

    def begin(self, variables, given, labels, train):
        return {}, {}

    def observe(self, variables, constants, carry, x, train):
        outputs, carry = self.imagine(variables, constants, carry, x)
        seen = jnp.mean(x.target[:, :3], axis=(2, 3))
        posterior = Gaussian(seen, jnp.full_like(seen, -9.0))
        return outputs._replace(posterior=posterior), carry, variables["batch_stats"]

    def imagine(self, variables, constants, carry, x):
        spread = lambda values: jnp.tile(values, (len(x.noise), 1))  # noqa: E731
        prior = Gaussian(spread(self.prior_mean), spread(2 * np.log(self.prior_std)))
        return StepOutputs(x.previous, prior), carry


def test_what_the_posterior_adds_correlates_from_frame_to_frame(parts):
    rng = np.random.default_rng(0)
    recordings = []
    for name, length in (("a", 9), ("b", 5)):
        frames = rng.integers(256, size=(length, *SIZE, 3), dtype=np.uint8)
        recordings.append(Recording("scene", name, 0, frames, frames))
    seeing = dataclasses.replace(parts, model=SeesBrightness())
    products = squares = 0.0
    for recording in recordings:
        seen = recording.frames[1:, :3].mean(axis=(2, 3)) / 255
        deviations = (seen - SeesBrightness.prior_mean) / SeesBrightness.prior_std
        products += np.sum(deviations[1:] * deviations[:-1])
        squares += np.sum(deviations[1:] ** 2 + deviations[:-1] ** 2) / 2
    assert 0.1 < products / squares < 0.995
    for chunk, batch in ((64, 2), (2, 1)):
        first, second = rolled(seeing, recordings, "posterior", chunk, batch)
        assert first.scores.keys() == {"psnr", "ssim", "recon", "kl", "kl_nats"}
        found = correlation_of_successive_frames(first.moments + second.moments)
        assert found == pytest.approx(products / squares, abs=1e-4)
    assert correlation_of_successive_frames(Moments(2, np.zeros(3), np.zeros(3), 0.0, 0.0)) == 0


@pytest.mark.parametrize("count", [7, 256, 512, 2048])
def test_the_deviations_that_are_fetched_are_of_all_channels(parts, count):
    """z of (h, w, c) is flattened: a regular spacing would see some channels only."""
    channels = jnp.tile(jnp.arange(8.0), -(-count // 8))[None, :count]
    normal = Gaussian(jnp.zeros((1, count)), jnp.zeros((1, count)))
    frame = jnp.zeros((1, *SIZE, 3))
    outputs = StepOutputs(frame, normal, Gaussian(channels, jnp.zeros((1, count))))
    fetched = _keep_scores(parts.objective)(outputs, frame)[0]["deviations"]
    assert fetched.shape == (1, min(count, 256))
    assert np.all(
        np.bincount(np.asarray(fetched[0], int), minlength=8)[: min(count, 8)] > min(count, 256) / 16
    )


def collected_from(parts, recordings, **keywords):
    collected = Collected(range(1))
    for mode, samples in (("prior", SAMPLES), ("posterior", range(1))):
        for scored in rolled(parts, recordings, mode, 64, samples=samples, frames_of=samples, **keywords):
            collected.add(mode, scored)
    return collected


def test_the_summary_has_every_field(parts):
    collected = collected_from(parts, [moving_square("c", 6, 3), moving_square("d", 5, 4)])
    fields = summary(collected, parts.objective, beta=2.0)
    assert set(fields) == set(FIELDS)
    losses = [
        np.sum(scored.scores["recon"] + 2.0 * scored.scores["kl"]) for scored in collected.scored["posterior"]
    ]
    assert fields["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert fields["val_psnr_gap"] == pytest.approx(fields["val_psnr_posterior"] - fields["val_psnr_prior"])
    nats = [scored.scores["kl_nats"].mean() for scored in collected.scored["posterior"]]
    assert fields["val_kl_nats_per_frame"] == pytest.approx(np.mean(nats))
    assert fields["val_psnr_prior"] == pytest.approx(
        np.mean([scored.scores["psnr"].mean() for scored in collected.scored["prior"]])
    )
    # Frames are kept of the clips asked for only.
    assert [s.frames is not None for s in collected.scored["prior"]] == [True, False]
    assert len(collected.pictures) == 1


def test_diversity_is_the_psnr_between_two_samples(parts):
    recordings = [moving_square("c", 6, 3), moving_square("d", 5, 4)]
    collected = collected_from(parts, recordings)
    drawn = rolled(parts, recordings, "prior", 64, samples=SAMPLES, frames_of=SAMPLES)
    for clip, found in enumerate(collected.diversity):
        one, other = (s.frames.astype(float) / 255 for s in drawn if s.clip == clip)
        expected = -10 * np.log10(np.mean((one - other) ** 2, axis=(1, 2, 3)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    means = [values.mean() for values in collected.diversity]
    assert collected.latents()["diversity"] == pytest.approx(np.mean(means))
    assert max(means) < 60
    still = [one.frames for one in rolled(parts, recordings[:1], "prior", 64)]
    assert psnr_between(still[0], still[0]).tolist() == [100.0] * 5
    assert coincide([still[0], still[0]]) and not coincide([still[0], still[0], 255 - still[0]])


def test_the_priors_deviation_is_kept_per_frame(parts):
    (scored,) = rolled(parts, [moving_square("c", 6, 3)], "prior", 64)
    np.testing.assert_array_equal(scored.scores["prior_std"], np.ones(5))  # N(0, I)


def test_only_psnr_is_measured_in_training(parts):
    (scored,) = scorer(parts, 4, 8, measures=Measures()).run(
        initial(parts), [moving_square("c", 5, 3)], "prior", 7
    )
    assert set(scored.scores) == {"psnr", "prior_std"}
