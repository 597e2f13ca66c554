"""The objective against NumPy, written out from the report's equations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.losses import Objective
from cvae_jax.models.interface import Gaussian, StepOutputs, standard_normal
from cvae_jax.perceptual import lpips
from cvae_jax.runtime.errors import UserError

STEPS, CLIPS, BETA = 3, 4, 0.37


@pytest.fixture(scope="module")
def data():
    """Raw frames in and out of [0, 1], log-variances beyond the clip, per step and clip."""
    rng = np.random.default_rng(0)
    return {
        "raw": rng.uniform(-0.5, 1.5, (STEPS, CLIPS, 5, 6, 3)),
        "target": rng.uniform(0, 1, (STEPS, CLIPS, 5, 6, 3)),
        "mu": rng.normal(size=(STEPS, CLIPS, 5, 6, 2)),
        "logvar": rng.uniform(-13, 13, (STEPS, CLIPS, 5, 6, 2)),
    }


def evaluate(objective, data, *, train=True, mask=None, num_clips=None, **keywords):
    """(loss, recon, kl) of the package."""
    arrays = {k: jnp.asarray(v, jnp.float32) for k, v in data.items()}
    mask = jnp.ones(arrays["raw"].shape[1]) if mask is None else jnp.asarray(mask, jnp.float32)
    posterior = Gaussian(arrays["mu"], arrays["logvar"])
    step = StepOutputs(arrays["raw"], standard_normal(posterior.mean), posterior)
    recon, kl = objective.score(step, arrays["target"], train)
    assert recon.shape == kl.shape == arrays["raw"].shape[:2]
    num_clips = mask.sum() if num_clips is None else jnp.asarray(num_clips, jnp.float32)
    return objective.reduce(recon, kl, mask, jnp.asarray(BETA), num_clips, **keywords)


def reported(data, train=True):
    """The report's sums, step after step in float64: (loss, recon, kl)."""
    batch = data["raw"].shape[1]
    recon = kl = 0.0
    for raw, target, mu, logvar in zip(*(data[k] for k in ("raw", "target", "mu", "logvar"))):
        recon += np.mean((np.clip(raw, 0, 1) - target) ** 2) / batch
        lv = np.clip(logvar, -10, 10) if train else logvar
        kl += -0.5 * np.sum(1 + lv - mu**2 - np.exp(lv)) / batch
    return recon + BETA * kl, recon, kl


@pytest.mark.parametrize("train", [True, False])
def test_report_exact(data, train):
    np.testing.assert_allclose(evaluate(Objective(), data, train=train), reported(data, train), rtol=1e-5)


def test_the_clip_is_where_logvar_exceeds_it_in_training_only(data):
    train, inference = reported(data, True)[2], reported(data, False)[2]
    assert inference > 2 * train  # the data reach the clip
    assert evaluate(Objective(logvar_clip=0.0), data)[2] == pytest.approx(inference, rel=1e-5)
    narrow = {**data, "logvar": np.clip(data["logvar"], -2, 2)}
    clipped = evaluate(Objective(logvar_clip=2.0), data)[2]
    assert clipped == pytest.approx(reported(narrow)[2], rel=1e-5)


def test_kl_of_the_prior_itself_is_zero():
    prior = standard_normal(jnp.zeros((2, 3, 3, 4)))
    np.testing.assert_array_equal(Objective().kl_divergence(prior, prior, train=True), [0, 0])


def test_kl_between_two_gaussians_is_that_of_samples():
    """Closed form against the mean of log q - log p over samples of q, for latents of any shape."""
    rng = np.random.default_rng(0)
    q, p = (
        Gaussian(*(jnp.asarray(rng.normal(0, 0.7, (2, 3)), jnp.float32) for _ in range(2))) for _ in range(2)
    )
    z = jax.vmap(q.sample)(jnp.asarray(rng.normal(size=(200_000, 2, 3)), jnp.float32))
    log = lambda g: -0.5 * (g.logvar + (z - g.mean) ** 2 / jnp.exp(g.logvar))  # noqa: E731
    with jax.numpy_rank_promotion("allow"):
        sampled = jnp.mean(jnp.sum(log(q) - log(p), axis=-1), axis=0)
    np.testing.assert_allclose(Objective().kl_divergence(q, p, train=False), sampled, rtol=0.02)


def test_a_step_without_posterior_has_no_kl(data):
    frames = jnp.asarray(data["raw"][0], jnp.float32)
    step = StepOutputs(frames, standard_normal(jnp.zeros((CLIPS, 3))))
    recon, kl = Objective().score(step, frames, train=True)
    assert recon.shape == kl.shape == (CLIPS,) and not kl.any()


def test_per_element_is_the_sum_over_the_number_of_latent_elements(data):
    total, mean = evaluate(Objective(), data), evaluate(Objective(kl="per_element"), data)
    assert mean[2] == pytest.approx(float(total[2]) / (5 * 6 * 2), rel=1e-5)
    assert mean[1] == total[1]
    assert mean[0] == pytest.approx(float(total[1] + BETA * mean[2]), rel=1e-5)


def test_l1_mse_and_reconstruction_not_divided_again(data):
    error = np.clip(data["raw"], 0, 1) - data["target"]
    weighted = Objective(reconstruction="l1_mse", divide_recon_by_batch=False, l1_weight=0.02)
    expected = sum(0.02 * np.mean(np.abs(e)) + np.mean(e**2) for e in error)
    assert evaluate(weighted, data)[1] == pytest.approx(expected, rel=1e-5)
    expected = sum(np.mean(np.abs(e)) + np.mean(e**2) for e in error)
    objective = Objective(reconstruction="l1_mse", divide_recon_by_batch=False)
    assert evaluate(objective, data)[1] == pytest.approx(expected, rel=1e-5)
    again = evaluate(Objective(reconstruction="l1_mse"), data)
    assert again[1] == pytest.approx(expected / CLIPS, rel=1e-5)


def test_only_the_clamped_frame_loses_the_gradient_out_of_range():
    raw = jnp.asarray([-0.2, 0.4, 1.3]).reshape(1, 1, 3, 1)
    target = jnp.full((1, 1, 3, 1), 0.5)

    def gradient(clamp):
        score = lambda r: Objective(clamp=clamp).reconstruction_error(r, target)[0]  # noqa: E731
        return jax.grad(score)(raw).ravel()

    np.testing.assert_allclose(gradient(True), [0, 2 / 3 * -0.1, 0], rtol=1e-5)
    np.testing.assert_allclose(gradient(False), np.array([-0.7, -0.1, 0.8]) * 2 / 3, rtol=1e-5)


def test_unclamped_value(data):
    expected = np.sum(np.mean((data["raw"] - data["target"]) ** 2, axis=(1, 2, 3, 4))) / CLIPS
    assert evaluate(Objective(clamp=False), data)[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fields", [{}, {"kl": "per_element", "divide_recon_by_batch": False}])
def test_padded_clips_do_not_count(data, fields):
    objective = Objective(**fields)
    without = evaluate(objective, {k: v[:, [0, 2]] for k, v in data.items()})
    np.testing.assert_allclose(evaluate(objective, data, mask=[1, 0, 1, 0]), without, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"divide_recon_by_batch": False}])
def test_the_shares_of_two_devices_add_up(data, fields):
    objective, mask = Objective(**fields), np.array([1, 1, 1, 0])
    whole = evaluate(objective, data, mask=mask)
    shares = [
        evaluate(objective, {k: v[:, part] for k, v in data.items()}, mask=mask[part], num_clips=3)
        for part in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(np.sum(shares, axis=0), whole, rtol=1e-5)


def test_a_single_step_is_reduced_like_a_clip_of_one(data):
    objective = Objective()
    recon, kl = jnp.asarray([0.1, 0.2]), jnp.asarray([3.0, 5.0])
    mask, beta, num = jnp.ones(2), jnp.asarray(0.5), jnp.asarray(2.0)
    value = objective.reduce(recon, kl, mask, beta, num)
    np.testing.assert_allclose(value, [0.075 + 0.5 * 4, 0.075, 4], rtol=1e-6)
    np.testing.assert_array_equal(value, objective.reduce(recon[None], kl[None], mask, beta, num))


# The calibrated decoder

CALIBRATED = Objective(reconstruction="calibrated", divide_recon_by_batch=False)
FRAME_SIZE = 5 * 6 * 3


def test_calibrated_is_the_gaussian_likelihood_with_its_best_variance(data):
    loss, recon, kl = evaluate(CALIBRATED, data, frame_size=FRAME_SIZE)
    error = (np.clip(data["raw"], 0, 1) - data["target"]) ** 2
    variances = np.linspace(0.5, 1.5, 1001) * error.mean()
    # Mean over all values of -log N(target; frame, variance), without 0.5 log 2 pi.
    likelihood = 0.5 * np.log(variances) + error.mean() / (2 * variances)
    assert variances[likelihood.argmin()] == pytest.approx(error.mean())
    nats = reported(data)[2]
    expected = likelihood.min() - 0.5 + BETA * nats / (STEPS * FRAME_SIZE)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert recon == pytest.approx(STEPS * error.mean(), rel=1e-5) and kl == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("objective", [CALIBRATED, Objective(divide_recon_by_batch=False)])
def test_the_loss_of_one_clip_is_that_of_a_batch_of_one(data, objective):
    one = {name: values[:, :1] for name, values in data.items()}
    loss = evaluate(objective, one, frame_size=FRAME_SIZE)[0]
    raw, target, mean, logvar = (jnp.asarray(one[k], jnp.float32) for k in ("raw", "target", "mu", "logvar"))
    posterior = Gaussian(mean, logvar)
    scores = objective.score(StepOutputs(raw, standard_normal(mean), posterior), target, train=True)
    recon, kl = (np.asarray(values[:, 0]) for values in scores)
    assert objective.of_clip(recon, kl, BETA, FRAME_SIZE) == pytest.approx(float(loss), rel=1e-5)


def test_the_gradient_of_calibrated_is_that_of_half_the_log_error(data):
    target = jnp.asarray(data["target"], jnp.float32)
    mask, beta = jnp.asarray([1.0, 1.0, 0.0, 1.0]), jnp.asarray(BETA)
    unclamped = dataclasses.replace(CALIBRATED, clamp=False)

    def loss(raw):
        recon = unclamped.reconstruction_error(raw, target)
        return unclamped.reduce(recon, jnp.zeros_like(recon), mask, beta, mask.sum(), FRAME_SIZE)[0]

    def half_log(raw):
        return 0.5 * jnp.log(jnp.mean((raw - target)[:, np.array([0, 1, 3])] ** 2))

    raw = jnp.asarray(data["raw"], jnp.float32)
    value, gradient = jax.value_and_grad(loss)(raw)
    wanted, wanted_gradient = jax.value_and_grad(half_log)(raw)
    assert value == pytest.approx(float(wanted), rel=1e-5)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-4, atol=1e-9)


def test_the_shares_of_two_devices_add_up_when_calibrated(data):
    """Values and gradients; the error is that of the global batch, not the mean of two logarithms."""
    mask, num_clips = np.float32([1, 1, 1, 0]), 3
    whole = evaluate(CALIBRATED, data, mask=mask, frame_size=FRAME_SIZE)
    psum = lambda share: jnp.asarray(whole[1])  # noqa: E731
    shares = [
        evaluate(
            CALIBRATED,
            {k: v[:, part] for k, v in data.items()},
            mask=mask[part],
            num_clips=num_clips,
            frame_size=FRAME_SIZE,
            psum=psum,
        )
        for part in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(np.sum(shares, axis=0), whole, rtol=1e-5)


# Free bits and balanced KL


def gaussians(scale):
    rng = np.random.default_rng(2)
    draw = lambda: jnp.asarray(rng.normal(0, scale, (2, 4)), jnp.float32)  # noqa: E731
    return Gaussian(draw(), draw()), Gaussian(draw(), draw())


def test_free_bits_floor_the_kl_of_a_frame_in_training_only():
    q, p = gaussians(0.5)
    nats = Objective().kl_divergence(q, p, train=True)
    floor = float(nats.mean())
    assert nats.min() < floor < nats.max()
    objective = Objective(free_bits=floor)
    np.testing.assert_allclose(objective.kl_divergence(q, p, train=True), np.maximum(nats, floor), rtol=1e-6)
    np.testing.assert_array_equal(objective.kl_divergence(q, p, train=False), nats)
    gradient = jax.grad(lambda mean: objective.kl_divergence(q._replace(mean=mean), p, True).sum())(q.mean)
    below = np.asarray(nats) < floor
    assert (gradient[below] == 0).all() and (gradient[~below] != 0).all()
    halved = Objective(free_bits=floor, kl="per_element").kl_divergence(q, p, train=True)
    np.testing.assert_allclose(halved, np.maximum(nats, floor) / 4, rtol=1e-6)


def test_kl_balance_weighs_the_gradients_and_keeps_the_value():
    q, p = gaussians(0.5)

    def run(objective, train=True):
        total = lambda q, p: objective.kl_divergence(q, p, train).sum()  # noqa: E731
        return jax.value_and_grad(total, argnums=(0, 1))(q, p)

    value, (of_q, of_p) = run(Objective())
    balanced, (balanced_q, balanced_p) = run(Objective(kl_balance=0.8))
    assert balanced == pytest.approx(float(value), rel=1e-6)
    for ours, theirs in zip(balanced_q, of_q, strict=True):
        np.testing.assert_allclose(ours, 0.2 * theirs, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(balanced_p, of_p, strict=True):
        np.testing.assert_allclose(ours, 0.8 * theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"free_bits": -1.0}, "config.loss.free_bits is -1.0; give a finite number of nats"),
        ({"kl_balance": 1.0}, r"config.loss.kl_balance is 1.0; give a number in \[0, 1\)"),
        ({"reconstruction": "calibrated"}, "set config.loss.divide_recon_by_batch=False"),
        (
            {"reconstruction": "calibrated", "divide_recon_by_batch": False, "kl": "per_element"},
            "and config.loss.kl=sum",
        ),
        (
            {"reconstruction": "l1"},
            "config.loss.reconstruction is 'l1'; choose one of mse, l1_mse, calibrated",
        ),
        ({"kl": "mean"}, "config.loss.kl is 'mean'; choose one of sum, per_element"),
        ({"logvar_clip": -1.0}, "config.loss.logvar_clip is -1.0; give a finite number"),
        ({"logvar_clip": float("nan")}, "config.loss.logvar_clip is nan; give a finite number"),
        ({"logvar_clip": float("inf")}, "config.loss.logvar_clip is inf; give a finite number"),
    ],
)
def test_refusals(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        Objective(**fields)


# LPIPS


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.uniform(size=(2, 3, 31, 33, 3)), jnp.float32) for _ in range(2)]


def test_lpips_is_added_to_the_error_of_each_frame(images):
    pytest.importorskip(lpips.PACKAGE, reason="LPIPS needs the extra metrics")
    raw, target = images
    plain, with_lpips = (Objective(lpips=weight).reconstruction_error(raw, target) for weight in (0.0, 0.5))
    weights = lpips.load_weights()
    expected = [
        [lpips.distance(weights, *(lpips.features(weights, x[None]) for x in pair))[0] for pair in zip(a, b)]
        for a, b in zip(raw, target, strict=True)
    ]
    np.testing.assert_allclose(with_lpips - plain, 0.5 * np.array(expected), rtol=1e-4, atol=1e-6)


def test_the_gradient_of_lpips_is_finite_on_flat_images(images):
    pytest.importorskip(lpips.PACKAGE, reason="LPIPS needs the extra metrics")
    error = lambda raw: jnp.sum(Objective(lpips=1.0).reconstruction_error(raw, images[1][0]))  # noqa: E731
    for level in (0.0, 0.5):
        gradient = jax.grad(error)(jnp.full_like(images[0][0], level))
        assert jnp.isfinite(gradient).all() and jnp.any(gradient != 0)


def test_lpips_on_small_frames_is_refused():
    pytest.importorskip(lpips.PACKAGE, reason="LPIPS needs the extra metrics")
    with pytest.raises(UserError, match="needs frames of 31 x 31 and these are 30 x 64: set it to 0"):
        Objective(lpips=1.0).check_frame_size(30, 64)
    Objective(lpips=1.0).check_frame_size(31, 64)
    Objective().check_frame_size(1, 1)
