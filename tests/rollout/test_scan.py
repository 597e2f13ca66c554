"""The loop over time against a plain loop in Python, and what must not depend on what."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config
from jax import lax
from small_model import SmallCVAE
from whole_clips import predict, reconstruct

from cvae_jax.config import Components
from cvae_jax.losses import Objective
from cvae_jax.models.interface import init_variables
from cvae_jax.rollout.noise import clip_noise, correlated, derive_keys
from cvae_jax.rollout.scan import Clips, RolloutOptions
from cvae_jax.runtime.errors import UserError
from cvae_jax.training.gradients import clip_gradients

H, W, N = 12, 11, 4
B, STEPS = 2, 5
GAIN = 8.0
BETA = np.float32(1e-5)
MODEL = SmallCVAE(8, 2, N, 8)
RESIDUAL = SmallCVAE(8, 2, N, 8, output="residual")
HISTORY = SmallCVAE(8, 2, N, 8, history=2)
LEARNED = SmallCVAE(8, 2, N, 8, prior="learned")


@dataclasses.dataclass(frozen=True)
class Feedback:
    """Where gradients stop, and what is folded."""

    cut_feedback: bool = True
    cut_previous_features: bool = True
    fold_time: bool = False
    time_chunk: int = 5

    def of(self, model):
        options = RolloutOptions(self.cut_feedback, self.fold_time, self.time_chunk)
        return dataclasses.replace(model, cut_previous_features=self.cut_previous_features), options


REPORT = Feedback()
FEATURES_UNCUT = Feedback(cut_previous_features=False)
UNCUT = Feedback(cut_feedback=False, cut_previous_features=False)
FOLDED = Feedback(fold_time=True, time_chunk=3)  # 5 steps: two chunks of 3, the last one filled up


@pytest.fixture(scope="module")
def variables():
    """Weights under which frames depend on the frame before, with values in and out of [0, 1]."""
    variables = init_variables(MODEL, 0, (H, W))
    params = variables["params"]
    params["frame_encoder"]["layer_6"]["kernel"] *= GAIN
    variables["batch_stats"]["label_encoder"]["layer_2"] = {
        "mean": np.float32([0.2]),
        "var": np.float32([0.7]),
    }

    @jax.jit
    def raw(variables, frame):
        features = MODEL.network.apply(variables, frame, method="encode_frame")
        zeros = partial(jnp.zeros, dtype=jnp.float32)
        return MODEL.network.apply(
            variables,
            features,
            zeros((B, H, W, 2)),
            zeros((B, H, W, N)),
            zeros((B, H, W, 6)),
            method="decode",
        )

    outputs = np.asarray(raw(variables, draw((B, H, W, 3), 7)))
    last = params["generator"]["layer_7"]
    gain = 0.3 / outputs.std(axis=(0, 1, 2))
    last["bias"] = 0.5 + (last["bias"] - outputs.mean(axis=(0, 1, 2))) * gain
    last["kernel"] = last["kernel"] * gain
    return jax.tree.map(jnp.asarray, variables)


def draw(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def clips():
    shape = (B, STEPS + 1, H, W, 3)
    return Clips(jnp.asarray(draw(shape, 1)), jnp.asarray(draw(shape, 2)), jnp.ones(B))


def change(clips, **fields):
    return clips.replace(**{name: jnp.asarray(value) for name, value in fields.items()})


EPS = np.random.default_rng(3).normal(size=(STEPS, B, H, W, N)).astype(np.float32)


def eps_of(t):
    return jnp.asarray(EPS)[t - 1]


@partial(jax.jit, static_argnames=("feedback", "model"))
def scanned(feedback, variables, clips, forced, model=MODEL):
    """`clip_gradients` of the report's objective: one program a `feedback` and shape of `forced`."""
    model, options = feedback.of(model)
    return clip_gradients(
        model,
        Objective(),
        options,
        variables,
        clips,
        eps_of,
        forced,
        jnp.asarray(BETA),
        clips.mask.sum(),
    )


@partial(jax.jit, static_argnames="model")
def plain_step(
    model,
    params,
    stats,
    previous,
    history,
    current,
    label,
    eps,
    mask,
    forced,
    true_previous,
    cuts,
    reference,
):
    """One step, written from the specification; cuts (2,) is 1 where a gradient stops."""

    def cut(x, stop):
        return lax.stop_gradient(x) + (1 - stop) * (x - lax.stop_gradient(x))

    here = {"params": params, "batch_stats": stats}
    previous = jnp.where(forced[:, None, None, None], true_previous, cut(previous, cuts[0]))
    previous_features = cut(model.network.apply(here, previous, method="encode_frame"), cuts[1])
    features = model.network.apply(here, current, method="encode_frame")
    label_features, updates = model.network.apply(
        here, label[None], mask[None], True, method="encode_label", mutable=["batch_stats"]
    )
    mu, logvar = model.network.apply(here, features, label_features[0], method="posterior")
    z = mu + jnp.exp(logvar / 2) * eps
    shown = jnp.concatenate(history, axis=-1) if history else None
    raw = model.network.apply(
        here, previous_features, label_features[0], z, reference, shown, method="decode"
    )
    frame = jnp.clip(raw, 0, 1)
    count = mask.sum()
    recon = (jnp.mean((frame - current) ** 2, axis=(1, 2, 3)) * mask).sum() / count**2
    prior_mu, prior_logvar = jnp.zeros_like(mu), jnp.zeros_like(mu)
    if model.prior == "learned":
        prior_mu, prior_logvar = model.network.apply(
            here, previous_features, label_features[0], method="prior"
        )
    lv, lp = jnp.clip(logvar, -10, 10), jnp.clip(prior_logvar, -10, 10)
    elements = lp - lv + (jnp.exp(lv) + (mu - prior_mu) ** 2) / jnp.exp(lp) - 1
    kl = 0.5 * jnp.sum(elements, axis=(1, 2, 3)) @ mask / count
    history = [previous, *history][: len(history)]  # latest first
    return frame, history, updates.get("batch_stats", stats), recon, kl


def plain(feedback, variables, clips, forced, model=MODEL):
    """(gradients, metrics, statistics) by differentiating a loop in Python over the steps."""
    forced = np.broadcast_to(np.reshape(forced, (STEPS, -1)), (STEPS, B)).copy()
    forced[0] = True
    cuts = np.float32([feedback.cut_feedback, feedback.cut_previous_features])
    reference = clips.frames[:, 0]
    if clips.labels.ndim == 5:
        reference = jnp.concatenate([reference, clips.labels[:, 0]], axis=-1)

    # Differentiated by the start too, so that all steps are one program.
    def loss(params, frame, stats):
        recon = kl = 0.0
        history = [clips.frames[:, 0]] * model.history
        for t in range(1, STEPS + 1):
            frame, history, stats, recon_t, kl_t = plain_step(
                model,
                params,
                stats,
                frame,
                history,
                clips.frames[:, t],
                clips.labels[:, t],
                EPS[t - 1],
                clips.mask,
                forced[t - 1],
                clips.frames[:, t - 1],
                cuts,
                reference,
            )
            recon, kl = recon + recon_t, kl + kl_t
        total = recon + BETA * kl
        return total, ({"loss": total, "recon": recon, "kl": kl}, stats)

    start = variables["params"], clips.frames[:, 0], variables["batch_stats"]
    (gradients, *_), (metrics, stats) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*start)
    return gradients, metrics, stats


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree))))


def apart(one, other):
    """The norm of the difference of two trees, relative to the second."""
    return norm(jax.tree.map(np.subtract, one, other)) / norm(other)


def assert_same(ours, theirs):
    (gradients, metrics, stats), (gradients2, metrics2, stats2) = ours, theirs
    everything = norm(gradients2)
    assert everything > 0
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(gradients2), strict=True
    ):
        bound = 1e-3 * np.linalg.norm(other) + 1e-6 * everything
        assert np.linalg.norm(one - other) <= bound, jax.tree_util.keystr(path)
    assert metrics.keys() == metrics2.keys() == {"loss", "recon", "kl"}
    for key, value in metrics.items():
        np.testing.assert_allclose(value, metrics2[key], rtol=1e-4, err_msg=key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), stats, stats2)


TRUE, FALSE = np.ones(STEPS, bool), np.zeros(STEPS, bool)
MIXED = np.array([False, True, False, True, False])
BY_CLIP = np.array([[False, True], [True, False], [False, False], [False, True], [True, True]])


# Gradients


@pytest.mark.parametrize(
    ("feedback", "forced"),
    [
        pytest.param(REPORT, TRUE, id="report-forced"),
        pytest.param(REPORT, FALSE, id="report-autoregressive"),
        pytest.param(REPORT, MIXED, id="report-mixed"),
        pytest.param(REPORT, BY_CLIP, id="report-by-clip"),
        pytest.param(FEATURES_UNCUT, FALSE, id="features-uncut-autoregressive"),
        pytest.param(FEATURES_UNCUT, MIXED, id="features-uncut-mixed"),
        pytest.param(UNCUT, FALSE, id="uncut-autoregressive"),
        pytest.param(UNCUT, MIXED, id="uncut-mixed"),
        pytest.param(FOLDED, TRUE, id="folded"),
        pytest.param(FOLDED, MIXED, id="folded-but-not-forced"),
    ],
)
def test_gradients_are_those_of_a_plain_loop(variables, clips, feedback, forced):
    assert_same(scanned(feedback, variables, clips, forced), plain(feedback, variables, clips, forced))


@pytest.fixture(scope="module")
def residual_variables():
    return jax.tree.map(jnp.asarray, init_variables(RESIDUAL, 0, (H, W)))


@pytest.mark.parametrize(("feedback", "forced"), [(REPORT, FALSE), (FOLDED, TRUE)], ids=["scanned", "folded"])
def test_gradients_of_the_residual_output(residual_variables, clips, feedback, forced):
    arguments = (feedback, residual_variables, clips, forced, RESIDUAL)
    assert_same(scanned(*arguments), plain(*arguments))


@pytest.fixture(scope="module")
def history_variables():
    return jax.tree.map(jnp.asarray, init_variables(HISTORY, 0, (H, W)))


@pytest.mark.parametrize(
    ("feedback", "forced"),
    [
        pytest.param(REPORT, MIXED, id="mixed"),
        pytest.param(REPORT, BY_CLIP, id="by-clip"),
        pytest.param(UNCUT, MIXED, id="uncut"),
        pytest.param(FOLDED, TRUE, id="folded"),
    ],
)
def test_gradients_with_a_history(history_variables, clips, feedback, forced):
    """The decoder sees the two frames before the previous one as it saw them: true ones, or its own."""
    arguments = (feedback, history_variables, clips, forced, HISTORY)
    assert_same(scanned(*arguments), plain(*arguments))


@pytest.fixture(scope="module")
def learned_variables(variables):
    fresh = init_variables(LEARNED, 0, (H, W))["params"]["prior_predictor"]
    return {**variables, "params": {**variables["params"], "prior_predictor": fresh}}


@pytest.mark.parametrize(
    ("feedback", "forced"),
    [
        pytest.param(REPORT, MIXED, id="mixed"),
        pytest.param(UNCUT, MIXED, id="uncut"),
        pytest.param(FOLDED, TRUE, id="folded"),
    ],
)
def test_gradients_of_a_learned_prior(learned_variables, clips, feedback, forced):
    arguments = (feedback, learned_variables, clips, forced, LEARNED)
    ours = scanned(*arguments)
    assert_same(ours, plain(*arguments))
    assert norm(ours[0]["prior_predictor"]) > 0


def test_a_learned_prior_is_what_predictions_draw_from(learned_variables, clips):
    """Its mean moves the prediction at temperature 0, its width the one with noise; clips stay apart."""
    first, labels = clips.frames[:, 0], clips.labels
    run = jax.jit(lambda v, scale: predict(LEARNED, v, first, labels, eps_of, scale), static_argnames="scale")

    def with_bias(mean, logvar):
        params = dict(learned_variables["params"])
        last = params["prior_predictor"]["layer_6"]
        bias = np.concatenate([np.full(N, mean, np.float32), np.full(N, logvar, np.float32)])
        params["prior_predictor"] = {"layer_6": {"kernel": np.zeros_like(last["kernel"]), "bias": bias}}
        return {**learned_variables, "params": params}

    standard = jax.jit(lambda v, noise: predict(MODEL, v, first, labels, lambda t: noise[t - 1]))
    for mean, logvar, scale in ((0.7, -1.0, 1.0), (0.7, -1.0, 0.0)):
        z = mean + np.float32(np.exp(logvar / 2)) * scale * EPS
        expected = standard(learned_variables, jnp.asarray(z))
        np.testing.assert_allclose(run(with_bias(mean, logvar), scale), expected, atol=1e-5)
    assert apart(run(with_bias(0.7, -1.0), 0.0), run(with_bias(0.0, -1.0), 0.0)) > 0.01


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize(("feedback", "forced"), [(REPORT, MIXED), (FOLDED, TRUE)], ids=["scanned", "folded"])
def test_gradients_with_vectors_for_labels(clips, feedback, forced, size):
    variables = jax.tree.map(jnp.asarray, init_variables(RESIDUAL, 0, (H, W), size))
    vectors = change(clips, labels=draw((B, STEPS + 1, size), 5))
    ours = scanned(feedback, variables, vectors, forced, RESIDUAL)
    assert_same(ours, plain(feedback, variables, vectors, forced, RESIDUAL))
    if size:
        assert norm(ours[0]["vector_encoder"]) > 0
    else:
        assert "vector_encoder" not in ours[0] and not ours[2]


def test_the_three_cuts_have_different_gradients(variables, clips):
    """So that the comparisons above can tell them apart."""
    of = lambda feedback: scanned(feedback, variables, clips, FALSE)  # noqa: E731
    report, features_uncut, uncut = of(REPORT), of(FEATURES_UNCUT), of(UNCUT)
    assert apart(features_uncut[0], report[0]) > 0.01
    assert apart(uncut[0], features_uncut[0]) > 0.01
    for other in (features_uncut, uncut):
        for key, value in report[1].items():  # the loss is the same
            np.testing.assert_allclose(other[1][key], value, rtol=1e-5)


@pytest.mark.parametrize("forced", [TRUE, FALSE, MIXED], ids=["forced", "free", "mixed"])
def test_cut_previous_features_leave_the_frame_encoder_to_the_posterior(variables, clips, forced):
    """With a posterior that ignores its input, nothing reaches the frame encoder."""
    params = dict(variables["params"])
    last = params["gaussian_predictor"]["layer_6"]
    params["gaussian_predictor"] = {
        **params["gaussian_predictor"],
        "layer_6": {**last, "kernel": np.zeros_like(last["kernel"])},
    }
    blind = {**variables, "params": params}
    cut = scanned(REPORT, blind, clips, forced)[0]
    assert norm(cut["frame_encoder"]) == 0 and norm(cut["generator"]) > 0
    assert norm(scanned(FEATURES_UNCUT, blind, clips, forced)[0]["frame_encoder"]) > 0
    assert norm(scanned(REPORT, variables, clips, forced)[0]["frame_encoder"]) > 0


@pytest.mark.parametrize("feedback", [REPORT, UNCUT], ids=["report", "uncut"])
def test_the_first_step_is_always_forced(variables, clips, feedback):
    for rest in (FALSE, MIXED):
        one, other = rest.copy(), rest.copy()
        one[0], other[0] = True, False
        jax.tree.map(
            np.testing.assert_array_equal,
            scanned(feedback, variables, clips, one),
            scanned(feedback, variables, clips, other),
        )


@pytest.mark.parametrize(
    ("feedback", "forced"),
    [(REPORT, MIXED), (REPORT, BY_CLIP), (UNCUT, FALSE), (FOLDED, TRUE), (FOLDED, MIXED)],
)
def test_a_padded_clip_changes_nothing(variables, clips, feedback, forced):
    mask = np.float32([1, 0])
    garbage = [draw(clips.frames.shape, seed) for seed in (8, 9)]
    for made, true in zip(garbage, (clips.frames, clips.labels), strict=True):
        made[0] = true[0]
    padded = scanned(feedback, variables, change(clips, mask=mask), forced)
    other = scanned(
        feedback, variables, change(clips, frames=garbage[0], labels=garbage[1], mask=mask), forced
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), padded, other)
    assert_same(padded, plain(feedback, variables, change(clips, mask=mask), forced))
    assert apart(padded[0], scanned(feedback, variables, clips, forced)[0]) > 0.01


def test_refusals():
    with pytest.raises(UserError, match="config.rollout.time_chunk is 0; give at least 1"):
        RolloutOptions(time_chunk=0)
    config = tiny_config()
    config.rollout.cut_feedback = False
    with pytest.raises(UserError, match="cut_feedback=False needs config.model.cvae.cut_previous"):
        Components.build(config)


# Reconstruction


@jax.jit
def rebuilt(variables, clips, forced):
    """Frames of `reconstruct` in inference mode, (b, t, h, w, c)."""
    frames, stats = reconstruct(MODEL, variables, clips, eps_of, forced)
    return jnp.swapaxes(frames, 0, 1), stats


def test_forced_steps_look_at_the_true_previous_frame(variables, clips):
    frames, stats = rebuilt(variables, clips, MIXED)
    assert frames.shape == (B, STEPS, H, W, 3) and frames.min() >= 0 and frames.max() <= 1
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    for changed in range(STEPS + 1):
        other = np.array(clips.frames)
        other[:, changed] = 1 - other[:, changed]
        difference = np.abs(rebuilt(variables, change(clips, frames=other), MIXED)[0] - frames)
        reached = [d > 1e-6 for d in difference.max(axis=(0, 2, 3, 4))]
        # Frame t depends on true frame t, and on t - 1 or else on what was generated there.
        expected, previous = [], changed == 0
        for t in range(1, STEPS + 1):
            forced = t == 1 or MIXED[t - 1]
            previous = changed == t or (changed == t - 1 if forced else previous)
            expected.append(previous)
        assert reached == expected, changed


def test_equal_decisions_of_all_clips_are_one_decision(variables, clips):
    by_clip = np.repeat(MIXED[:, None], B, axis=1)
    one, other = (rebuilt(variables, clips, forced)[0] for forced in (MIXED, by_clip))
    np.testing.assert_allclose(one, other, atol=5e-5)
    each = rebuilt(variables, clips, BY_CLIP)[0]
    for clip in range(B):  # and each clip follows its own column
        alone = rebuilt(variables, clips, np.repeat(BY_CLIP[:, [clip]], B, axis=1))[0]
        np.testing.assert_allclose(each[clip], alone[clip], atol=5e-5)
    assert np.abs(each - one).max() > 1e-3


def test_no_gradient_reaches_the_frames_before(variables, clips):
    @jax.jit
    def gradient(frames, forced):
        def second_step(frames):
            error = lambda out, x: Objective().reconstruction_error(out.raw, x.target)  # noqa: E731
            here = clips.replace(frames=frames)
            errors, _ = reconstruct(MODEL, variables, here, eps_of, forced, keep=error)
            return errors[1].sum()

        return jax.grad(second_step)(frames)

    for forced in (FALSE, TRUE):
        reached = np.abs(gradient(clips.frames, forced)).max(axis=(0, 2, 3, 4))
        assert (reached > 0).tolist() == [False, False, True, False, False, False]


# Prediction


@partial(jax.jit, static_argnames="model")
def predicted(variables, first, labels, temperature, model=MODEL):
    """(b, t, h, w, c) of `predict` with noise addressed by the place in the batch."""
    keys = derive_keys(jnp.asarray(5), jnp.arange(first.shape[0]))
    noise = clip_noise(keys, (H, W, N))
    frames = predict(model, variables, first, labels, noise, temperature=temperature)
    return jnp.swapaxes(frames, 0, 1)


@pytest.fixture(scope="module")
def video(variables, clips):
    first, labels = np.asarray(clips.frames[:, 0]), np.asarray(clips.labels)
    return first, labels, np.asarray(predicted(variables, first, labels, 1.0))


def test_prediction_is_causal_and_follows_its_labels(variables, video):
    first, labels, frames = video
    assert frames.shape == (B, STEPS, H, W, 3) and frames.min() >= 0 and frames.max() <= 1
    for changed in range(STEPS + 1):
        other = labels.copy()
        other[0, changed] = 1 - other[0, changed]
        difference = np.abs(predicted(variables, first, other, 1.0) - frames).max(axis=(2, 3, 4))
        # labels[:, 0] is not used; label t changes frame t and those after; never another clip.
        expected = [changed > 0 and t >= changed for t in range(1, STEPS + 1)]
        assert (difference[0] > 0).tolist() == expected, changed
        assert (difference[1] == 0).all()


def test_the_residual_output_starts_from_the_first_frame_and_its_label(residual_variables, video):
    first, labels, _ = video
    frames = predicted(residual_variables, first, labels, 1.0, RESIDUAL)
    other = labels.copy()
    other[0, 0] = 1 - other[0, 0]
    changed = np.abs(predicted(residual_variables, first, other, 1.0, RESIDUAL) - frames)
    assert (changed[0].max(axis=(1, 2, 3)) > 0).all() and (changed[1] == 0).all()
    last = residual_variables["params"]["generator"]["layer_7"]
    still = {
        **residual_variables,
        "params": {
            **residual_variables["params"],
            "generator": {"layer_7": jax.tree.map(jnp.zeros_like, last)},
        },
    }
    nothing_drawn = predicted(still, first, labels, 1.0, RESIDUAL)
    np.testing.assert_array_equal(nothing_drawn, np.repeat(first[:, None], STEPS, axis=1))


def test_prediction_depends_on_the_first_frame_and_the_noise(variables, video):
    first, labels, frames = video
    for other in (
        predicted(variables, 1 - first, labels, 1.0),
        predicted(variables, first, labels, 0.5),
    ):
        assert (np.abs(other - frames).max(axis=(2, 3, 4)) > 1e-4).all()


def test_temperature_zero_has_no_noise(variables, clips, video):
    first, labels, _ = video
    still = jax.jit(lambda f, y, n: predict(MODEL, variables, f, y, lambda t: n))
    expected = np.swapaxes(still(first, labels, np.zeros((B, H, W, N), np.float32)), 0, 1)
    np.testing.assert_allclose(predicted(variables, first, labels, 0.0), expected, atol=5e-5)


def test_a_larger_batch_and_a_longer_video_begin_with_the_same_frames(variables, video):
    first, labels, frames = video
    more = np.concatenate([first, draw(first[:1].shape, 11)])
    longer = np.concatenate([labels, draw((B, 2, H, W, 3), 12)], axis=1)
    longer = np.concatenate([longer, draw((1, *longer.shape[1:]), 13)])
    other = predicted(variables, more, longer, 1.0)
    assert other.shape == (B + 1, STEPS + 2, H, W, 3)
    np.testing.assert_allclose(other[:B, :STEPS], frames, atol=1e-5)


def test_bytes_and_floats_agree(variables, clips, video):
    first, labels = (np.rint(255 * x).astype(np.uint8) for x in video[:2])
    scale = lambda x: x.astype(np.float32) / 255  # noqa: E731
    from_bytes = predicted(variables, first, labels, 1.0)
    from_floats = predicted(variables, scale(first), scale(labels), 1.0)
    np.testing.assert_allclose(from_bytes, from_floats, atol=5e-5)
    frames = np.rint(255 * clips.frames).astype(np.uint8)
    one = rebuilt(variables, change(clips, frames=frames, labels=labels), MIXED)[0]
    floats = change(clips, frames=scale(frames), labels=scale(labels))
    other = rebuilt(variables, floats, MIXED)[0]
    np.testing.assert_allclose(one, other, atol=5e-5)


# Noise


def test_noise_is_addressed_by_clip_and_step():
    keys = derive_keys(jnp.asarray(1), jnp.asarray(2), jnp.arange(4))
    noise = jax.jit(lambda keys, t: clip_noise(keys, (3, 2, 5))(t))
    values = np.stack([noise(keys, t) for t in (1, 2, 3)])
    assert values.shape == (3, 4, 3, 2, 5)
    assert len(np.unique(values)) == values.size  # every clip, step and element its own
    np.testing.assert_array_equal(noise(keys[2:3], 2), values[1, 2:3])
    np.testing.assert_array_equal(noise(keys[::-1], 3), values[2, ::-1])
    many = np.asarray(noise(derive_keys(jnp.asarray(1), jnp.arange(300)), 1))
    assert abs(many.mean()) < 0.05 and abs(many.std() - 1) < 0.05


@pytest.mark.parametrize("correlation", [0.05, 0.5, 0.8, 0.95])
def test_correlated_noise_is_standard_normal_and_its_correlation_falls_by_a_factor_each_step(correlation):
    noise = clip_noise(derive_keys(jnp.asarray(1), jnp.arange(40_000)), (2,))

    def series(start, count, before):
        slow, last = correlated(noise, correlation, jnp.int32(start), count, before)
        return [slow(jnp.int32(t)) for t in range(start + 1, start + 1 + count)], last

    whole, last = series(7, 9, noise(jnp.int32(0)))
    values = np.stack(whole)
    np.testing.assert_array_equal(values[-1], last)
    np.testing.assert_allclose(values.mean(axis=(1, 2)), 0, atol=0.015)
    np.testing.assert_allclose(values.std(axis=(1, 2)), 1, atol=0.01)
    found = [np.corrcoef(values[0].ravel(), other.ravel())[0, 1] for other in values]
    np.testing.assert_allclose(found, correlation ** np.arange(9), atol=0.015)
    first, last = series(7, 4, noise(jnp.int32(0)))
    np.testing.assert_allclose(values, np.stack(first + series(11, 5, last)[0]), atol=1e-6)


def test_noise_without_correlation_is_left_alone():
    noise = clip_noise(derive_keys(jnp.asarray(1), jnp.arange(4)), (2,))
    assert correlated(noise, 0.0, jnp.int32(0), 9, noise(jnp.int32(0)))[0] is noise


def test_a_key_is_one_fold_after_the_other():
    data = lambda *parts: np.asarray(jax.random.key_data(derive_keys(*map(jnp.asarray, parts))))  # noqa: E731
    whole = data(7, 3, [4, 5, 6], 2)
    for row, clip in enumerate((4, 5, 6)):
        key = jax.random.key(7)
        for part in (3, clip, 2):
            key = jax.random.fold_in(key, part)
        np.testing.assert_array_equal(whole[row], jax.random.key_data(key))
    pairs = data(7, [4, 5], [1, 9])  # arrays of parts go together, one key per entry
    np.testing.assert_array_equal(pairs, np.stack([data(7, 4, 1), data(7, 5, 9)]))
    different = [data(7, 3), data(3, 7), data(7), data(7, 3, 0), data(8, 3)]
    assert len({tuple(d) for d in different}) == len(different)
