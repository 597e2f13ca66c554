"""Gradients through constants, conditioning and carry: a toy model against a loop in Python, in all forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.losses import Objective
from cvae_jax.models.interface import Gaussian, StepInputs, StepOutputs, VideoModel
from cvae_jax.rollout.noise import clip_noise, derive_keys
from cvae_jax.rollout.scan import Clips, RolloutOptions
from cvae_jax.training import gradients as forms
from cvae_jax.training.gradients import clip_gradients

B, STEPS, N_PAST, H, W = 4, 5, 2, 3, 2
OBJECTIVE = Objective(clamp=False, divide_recon_by_batch=False)
CALIBRATED = Objective("calibrated", clamp=False, divide_recon_by_batch=False)
BETA = jnp.float32(0.3)


@dataclasses.dataclass(frozen=True)
class Toy(VideoModel):
    """Constants, conditioning, first carry and prior all depend on the parameters."""

    crosses: bool = False
    clips_at_once: int | None = None

    @property
    def gradient_crosses_time(self):
        return self.crosses

    def latent_shape(self, frame_size):
        return (3,)

    def init(self, seed, frame_size, label_size):
        draw = np.random.default_rng(seed).normal
        names = ("base", "label", "state", "target", "prior", "width", "decoder")
        return {"params": {name: jnp.asarray(draw(0, 0.5, 3), jnp.float32) for name in names}}

    def begin(self, variables, given, labels, train):
        seen = given.mean(axis=(1, 2, 3)) * variables["params"]["base"][None]
        first = jnp.tanh(seen) if self.crosses else jnp.zeros_like(seen)
        return {"seen": seen}, {"state": first}

    def condition(self, variables, labels, mask, train):
        code = labels.mean(axis=(2, 3)) * variables["params"]["label"][None, None]
        return code, {"steps": variables["batch_stats"]["steps"] + jnp.sum(mask.max(axis=1))}

    def observe(self, variables, constants, carry, x: StepInputs, train):
        p = {name: value[None] for name, value in variables["params"].items()}
        state = carry["state"] if self.crosses else jax.lax.stop_gradient(carry["state"])
        here = jnp.tanh(
            x.previous.mean(axis=(1, 2)) + state * p["state"] + x.conditioning + constants["seen"]
        )
        prior = Gaussian(here * p["prior"], jnp.broadcast_to(p["width"], here.shape))
        posterior = Gaussian(here + x.target.mean(axis=(1, 2)) * p["target"], -0.5 * jnp.ones_like(here))
        drawn = posterior.sample(x.noise) * p["decoder"] + here
        raw = 0.5 * x.previous + 0.1 * drawn[:, None, None]
        return StepOutputs(raw, prior, posterior), {"state": here}, variables["batch_stats"]

    def imagine(self, variables, constants, carry, x):
        raise AssertionError("training never imagines")


class Folding(Toy):
    """The same model, whose teacher-forced steps are taken together (here one after the other)."""

    def teacher_forced_chunk(self, variables, constants, carry, x: StepInputs, train):
        kept = []
        for step in range(len(x.t)):
            own = jax.tree.map(lambda leaf, step=step: leaf[step], x)
            outputs, carry, stats = self.observe(variables, constants, carry, own, train)
            kept.append(outputs)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept), carry, stats


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    draw = lambda: jnp.asarray(rng.uniform(size=(B, STEPS + 1, H, W, 3)), jnp.float32)  # noqa: E731
    return Clips(draw(), draw(), jnp.asarray([1.0, 1.0, 0.0, 1.0]))


def noise_of(model):
    return clip_noise(derive_keys(jnp.uint32(3), jnp.arange(B)), model.latent_shape((H, W)))


def expected(model, variables, clips, forced, objective=OBJECTIVE):
    """(gradients, loss) by differentiating a plain loop: no scan, groups, chunks or rematerialisation."""
    noise = noise_of(model)
    count = clips.mask.sum()

    def loss(params):
        here = {**variables, "params": params}
        constants, carry = model.begin(here, clips.frames[:, :N_PAST], clips.labels[:, :N_PAST], True)
        generated, total_recon, total_kl = clips.frames[:, 0], 0.0, 0.0
        for t in range(1, STEPS + 1):
            true = jnp.asarray(forced[t - 1] | (t == 1))
            choose = true if true.ndim == 0 else true[:, None, None, None]
            conditioning, _ = model.condition(here, clips.labels[None, :, t], clips.mask[None], True)
            x = StepInputs(
                t=jnp.int32(t),
                previous=jnp.where(choose, clips.frames[:, t - 1], jax.lax.stop_gradient(generated)),
                previous_is_true=true,
                previous_is_given=jnp.bool_(t <= N_PAST),
                label=clips.labels[:, t],
                conditioning=conditioning[0],
                noise=noise(jnp.int32(t)),
                mask=clips.mask,
                target=clips.frames[:, t],
            )
            outputs, carry, _ = model.observe(here, constants, carry, x, True)
            generated = outputs.frame
            recon, kl = objective.score(outputs, x.target, train=True)
            total_recon += jnp.sum(recon * clips.mask) / count
            total_kl += jnp.sum(kl * clips.mask) / count
        if objective is CALIBRATED:
            return 0.5 * jnp.log(total_recon / STEPS) + BETA * total_kl / STEPS / (H * W * 3)
        return total_recon + BETA * total_kl

    value, gradients = jax.value_and_grad(loss)(variables["params"])
    return gradients, value


TRUE, MIXED = np.ones(STEPS, bool), np.array([True, False, True, False, False])
BY_CLIP = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1]], bool)
WHOLE = RolloutOptions(fold_time=True, time_chunk=STEPS)
FOLD = RolloutOptions(fold_time=True, time_chunk=2)  # 5 steps: three chunks of 2, the last one filled up


@pytest.mark.parametrize(
    ("model", "options", "forced", "objective"),
    [
        pytest.param(Toy(), RolloutOptions(), MIXED, OBJECTIVE, id="steps"),
        pytest.param(Toy(), RolloutOptions(), BY_CLIP, OBJECTIVE, id="steps-by-clip"),
        pytest.param(Toy(clips_at_once=2), RolloutOptions(), MIXED, OBJECTIVE, id="steps-in-groups"),
        pytest.param(
            Toy(clips_at_once=2), RolloutOptions(), BY_CLIP, OBJECTIVE, id="steps-in-groups-by-clip"
        ),
        pytest.param(Folding(), FOLD, TRUE, OBJECTIVE, id="folded"),
        pytest.param(Folding(), FOLD, MIXED, OBJECTIVE, id="folded-but-not-forced"),
        pytest.param(Toy(crosses=True), RolloutOptions(), MIXED, OBJECTIVE, id="through-time"),
        pytest.param(Toy(crosses=True), FOLD, TRUE, OBJECTIVE, id="through-time-forced"),
        pytest.param(Folding(crosses=True), FOLD, TRUE, OBJECTIVE, id="through-time-folded"),
        pytest.param(Folding(crosses=True), WHOLE, TRUE, OBJECTIVE, id="through-time-whole"),
        pytest.param(Folding(crosses=True), WHOLE, MIXED, OBJECTIVE, id="through-time-not-forced"),
        pytest.param(Toy(), RolloutOptions(), MIXED, CALIBRATED, id="calibrated"),
        pytest.param(Toy(clips_at_once=2), RolloutOptions(), BY_CLIP, CALIBRATED, id="calibrated-by-clip"),
        pytest.param(Folding(), FOLD, TRUE, CALIBRATED, id="calibrated-folding"),
        pytest.param(Toy(crosses=True), RolloutOptions(), MIXED, CALIBRATED, id="calibrated-through-time"),
    ],
)
def test_gradients_are_those_of_a_plain_loop(clips, model, options, forced, objective):
    variables = {**model.init(1, (H, W), None), "batch_stats": {"steps": jnp.float32(0)}}
    run = jax.jit(
        lambda v, f: clip_gradients(
            model, objective, options, v, clips, noise_of(model), f, BETA, clips.mask.sum(), N_PAST
        )
    )
    gradients, metrics, stats = run(variables, jnp.asarray(forced))
    wanted, loss = expected(model, variables, clips, forced, objective)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    for name, value in wanted.items():
        assert np.abs(value).max() > 1e-4, name  # every path matters
        np.testing.assert_allclose(gradients[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert float(stats["steps"]) == STEPS  # steps that fill a chunk up do not count


@pytest.mark.parametrize(
    ("crosses", "objective"), [(False, OBJECTIVE), (True, OBJECTIVE), (False, CALIBRATED)]
)
@pytest.mark.parametrize(("throughout", "unused"), [(True, "step by step"), (False, "folded")])
def test_forcing_that_is_known_before_compiles_one_form(
    clips, monkeypatch, crosses, objective, throughout, unused
):
    model = Folding(crosses=crosses)
    variables = {**model.init(1, (H, W), None), "batch_stats": {"steps": jnp.float32(0)}}
    forced = jnp.arange(1, STEPS + 1) <= (STEPS if throughout else N_PAST)

    def run(known, forced=forced):
        return jax.jit(
            lambda v: clip_gradients(
                model,
                objective,
                FOLD,
                v,
                clips,
                noise_of(model),
                forced,
                BETA,
                clips.mask.sum(),
                N_PAST,
                throughout=known,
            )
        )(variables)

    decided = run(None)

    def refuse(*args):
        raise AssertionError(f"the form {unused} was compiled")

    for name in {
        "step by step": ("_within_steps", "_scanned_scores"),
        "folded": ("_folded", "_folded_scores"),
    }[unused]:
        monkeypatch.setattr(forms, name, refuse)
    for values in (forced, jnp.broadcast_to(forced[:, None], (STEPS, B))):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            run(throughout, values),
            decided,
        )


def test_a_gradient_through_the_carry_is_another_gradient(clips):
    """So that the comparison above can tell whether it was cut."""
    gradients = []
    for crosses in (False, True):
        model = Toy(crosses=crosses)
        variables = {**model.init(1, (H, W), None), "batch_stats": {"steps": jnp.float32(0)}}
        gradients.append(np.concatenate(list(expected(model, variables, clips, MIXED)[0].values())))
    one, other = gradients
    assert np.linalg.norm(one - other) > 0.05 * np.linalg.norm(other)
