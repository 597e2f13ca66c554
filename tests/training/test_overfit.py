"""Training makes the loss fall: every model on one clip, and clips that are overfitted."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import moving_square, read_rows, step_controls, tiny_config

from configs import quickstart
from cvae_jax import models
from cvae_jax.config import Components
from cvae_jax.data.datasets.real_clips import read_stretches
from cvae_jax.evaluation.evaluate import score
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.devices import Devices
from cvae_jax.train import train
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("small_model")

SIZE = (16, 16)
STEPS, RATE = 60, 1e-2


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("muon", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", models.KINDS)
def test_the_loss_on_one_clip_falls(kind, optimizer):
    """To less than a quarter in tens of steps, for every kind of model."""
    config = tiny_config()
    config.model.kind, config.optimizer.kind = kind, optimizer
    config.loss.clamp = False
    parts = Components.build(config)
    devices = Devices(jax.local_devices()[:1])
    state = devices.place(TrainState.create(init_variables(parts.model, 0, SIZE), parts.optimizer))
    step = devices.map_update(make_train_step(*parts.compiled, throughout=True))
    clip = moving_square("a", 4, 1, SIZE)
    one = {"mask": np.ones(1, np.float32), "index": np.zeros(1, np.int32)}
    batch = devices.split(one | {"frames": clip.frames[None], "labels": clip.labels[None]})
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, batch, step_controls([True] * 3, 1e-4, RATE))
        losses.append(metrics["loss"])
    assert np.mean(losses[-5:]) < losses[0] / 4


def one_clip(monkeypatch, clip):
    """Training, validation and evaluation have this clip alone."""
    monkeypatch.setattr(
        "cvae_jax.data.datasets.load", lambda *_, **__: {"train": [clip], "validation": [clip]}
    )


def overfitting_config(steps, rate):
    """The quickstart's, without what keeps it from overfitting; an epoch is 50 steps."""
    config = quickstart.get_config()
    config.num_epochs = steps // 50
    config.batch_size = 4
    config.data.repeats, config.data.clips_per_epoch = 400, 200
    config.learning_rate.peak = rate
    config.optimizer.weight_decay = 0.0
    config.augment.update(shift=0, mirror=False)
    config.eval.update(every=config.num_epochs, samples=1, best_of=0, lpips=False)
    config.checkpoint.every = config.num_epochs
    config.log.images = False
    return config


def test_a_small_clip_is_overfitted(monkeypatch, tmp_path):
    """Through the loop and its validation. The clip's mean frame reaches 16 dB."""
    one_clip(monkeypatch, moving_square("a", 8, 1, SIZE))
    config = overfitting_config(200, 1e-2)
    config.model.multiscale.update(widths=(8, 16), patch=1, latent_channels=2, position_octaves=1)
    train(config, tmp_path, jax.local_devices()[:1])
    assert read_rows(tmp_path)[-1]["val_psnr_prior"] > 30


@pytest.mark.slow
def test_a_real_clip_is_overfitted_beyond_35_dB(monkeypatch, tmp_path):
    """Of eight frames, predicted from the first one and their labels."""
    clip = next(read_stretches("train"))
    part = slice(12, 20)  # a jump
    clip = dataclasses.replace(clip, frames=clip.frames[part], labels=clip.labels[part])
    one_clip(monkeypatch, clip)
    config, one = overfitting_config(300, 5e-3), jax.local_devices()[:1]
    train(config, tmp_path, one)
    rows = score(config, tmp_path, "last", one, baselines=False).results["rows"]
    psnr = {row["name"]: row["psnr"] for row in rows}
    assert psnr["prior_mean"] > 35 and read_rows(tmp_path)[-1]["val_psnr_prior"] > 35, psnr
