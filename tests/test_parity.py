"""The model against fixtures written by the original PyTorch program (see docs/parity.md).

`CVAE_PARITY_FIXTURES=a.npz:b.npz pytest tests/test_parity.py` checks other files of the format.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole_clips import predict, reconstruct

from cvae_jax.losses import Objective
from cvae_jax.models.cvae import CVAE
from cvae_jax.models.cvae_torch import dimensions, to_variables
from cvae_jax.models.interface import init_variables
from cvae_jax.rollout.scan import Clips, RolloutOptions
from cvae_jax.training.gradients import clip_gradients

DEFAULT = Path(__file__).parent / "fixtures" / "parity_small.npz"
FIXTURES = [Path(p) for p in os.environ.get("CVAE_PARITY_FIXTURES", str(DEFAULT)).split(":") if p]


class Fixture:
    """One fixture file in our layout: video (b, t, h, w, c), variables as Flax trees."""

    def __init__(self, path: Path):
        data = dict(np.load(path))
        self.data = data
        state_dict = {k[3:]: v for k, v in data.items() if k.startswith("sd/")}
        self.dims = dimensions(state_dict)
        assert list(self.dims.values()) == data["dims"].tolist()
        self.variables = to_variables(state_dict)
        self.clips = Clips(
            jnp.asarray(data["in/frames"].transpose(0, 1, 3, 4, 2)),
            jnp.asarray(data["in/labels"].transpose(0, 1, 3, 4, 2)),
            jnp.ones(data["in/frames"].shape[0]),
        )
        eps = jnp.asarray(data["in/eps"].transpose(1, 0, 3, 4, 2))
        self.noise = lambda t: eps[t - 1]
        self.steps = eps.shape[0]
        self.beta = jnp.asarray(data["in/beta"])

    def model(self, formulation: str) -> CVAE:
        return CVAE(**self.dims, formulation=formulation)

    def frames(self, key: str) -> np.ndarray:
        """A (b, t, c, h, w) array of the file as time-major (t, b, h, w, c)."""
        return self.data[key].transpose(1, 0, 3, 4, 2)


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda path: path.stem)
def fixture(request) -> Fixture:
    return Fixture(request.param)


@pytest.fixture(scope="module", params=["plain", "cpu"])
def formulation(request) -> str:
    return request.param


def test_prior_rollout(fixture, formulation):
    model = fixture.model(formulation)
    first, labels = fixture.clips.frames[:, 0], fixture.clips.labels
    frames = jax.jit(lambda v: predict(model, v, first, labels, fixture.noise))(fixture.variables)
    np.testing.assert_allclose(frames, fixture.frames("eval/prior_rollout"), atol=1e-4, rtol=0)


def test_posterior_rollout_and_loss(fixture, formulation):
    model, objective = fixture.model(formulation), Objective()

    def keep(outputs, x):
        recon, kl = objective.score(outputs, x.target, train=True)  # the file clips the log-variance here too
        return outputs.frame, *outputs.posterior, recon, kl

    forced = jnp.zeros(fixture.steps, bool)
    (frames, mu, logvar, recon, kl), _ = jax.jit(
        lambda v: reconstruct(model, v, fixture.clips, fixture.noise, forced, keep=keep)
    )(fixture.variables)
    close = lambda value, key: np.testing.assert_allclose(  # noqa: E731
        value, fixture.frames(key), atol=1e-4, rtol=0
    )
    close(frames, "eval/posterior_rollout")
    close(mu, "eval/mu")
    close(logvar, "eval/logvar")
    clips = fixture.clips.mask.sum()
    np.testing.assert_allclose(recon.mean(1), fixture.data["eval/mse"], atol=1e-4)
    np.testing.assert_allclose(kl.mean(1), fixture.data["eval/kl"], rtol=1e-4)
    loss = objective.reduce(recon, kl, fixture.clips.mask, fixture.beta, clips)[0]
    np.testing.assert_allclose(loss, fixture.data["eval/loss"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("mode", ["train_tf", "train_ar", "train_tf_folded", "train_ar_folded"])
def test_training_step(fixture, formulation, mode):
    """Loss, frames, every gradient and the BatchNorm buffers after a clip in training mode."""
    if mode == "train_ar_folded" and formulation == "cpu":
        pytest.skip("a CPU does not fold time by default")
    model, objective = fixture.model(formulation), Objective()
    teacher_forced = not mode.startswith("train_ar")
    forced = jnp.full(fixture.steps, teacher_forced)
    feedback = RolloutOptions(fold_time=mode.endswith("folded"), time_chunk=2 + fixture.steps % 2)
    key = "train_tf" if teacher_forced else "train_ar"

    @jax.jit
    def run(variables):
        clips = fixture.clips.mask.sum()
        gradients, metrics, stats = clip_gradients(
            model,
            objective,
            feedback,
            variables,
            fixture.clips,
            fixture.noise,
            forced,
            fixture.beta,
            clips,
        )
        frames, _ = reconstruct(model, variables, fixture.clips, fixture.noise, forced, train=True)
        return gradients, metrics, stats, frames

    gradients, metrics, stats, frames = run(fixture.variables)
    np.testing.assert_allclose(metrics["loss"], fixture.data[f"{key}/loss"], atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(frames, fixture.frames(f"{key}/frames"), atol=1e-4, rtol=0)
    prefix = f"{key}/grad/"
    reference = to_variables({k[len(prefix) :]: v for k, v in fixture.data.items() if k.startswith(prefix)})[
        "params"
    ]
    everything = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(reference)))
    np.testing.assert_allclose(everything, fixture.data[f"{key}/grad_norm"], rtol=1e-4)
    ours = dict(jax.tree_util.tree_leaves_with_path(gradients))
    theirs = dict(jax.tree_util.tree_leaves_with_path(reference))
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        difference = np.linalg.norm(ours[path] - expected)
        bound = 1e-3 * np.linalg.norm(expected) + 1e-6 * everything
        assert difference <= bound, (jax.tree_util.keystr(path), difference, bound)
    norm = stats["label_encoder"]["layer_2"]
    np.testing.assert_allclose(norm["mean"], fixture.data[f"{key}/bn_running_mean"], atol=1e-4)
    np.testing.assert_allclose(norm["var"], fixture.data[f"{key}/bn_running_var"], atol=1e-4)


def test_parameter_count_at_the_default_dimensions():
    dims = dict(frame_features=128, label_features=32, latent_channels=12, decoder_features=192)
    params = init_variables(CVAE(**dims), seed=0, frame_size=(32, 64))["params"]
    count = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
    assert count == {
        "frame_encoder": 193_568,
        "label_encoder": 16_832,
        "gaussian_predictor": 8_289,
        "decoder_fusion": 617_768,
        "generator": 749_163,
    }
    assert sum(count.values()) == 1_585_620
