"""The recommended recipe as a whole: the multiscale model, random references, augmentation, Muon."""

import json

import jax
import pytest
from helpers import (
    Killed,
    kill_after_saving,
    moving_square,
    random_batch,
    read_rows,
    same_bits,
    step_controls,
)

from configs import own_video, quickstart, recommended, recommended_large
from cvae_jax.config import Components
from cvae_jax.evaluation.evaluate import evaluate
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.devices import Devices
from cvae_jax.train import open_run, train
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step


def small_config(**changes):
    config = quickstart.get_config()
    config.num_epochs = 2
    config.batch_size = 6
    config.clip_length = 3
    config.data.repeats = 1
    config.data.clips_per_epoch = 12
    config.model.multiscale.update(widths=(8, 16), latent_channels=2, position_octaves=1)
    config.augment.zoom, config.augment.brightness = 0.1, 0.1
    config.learning_rate.warmup_epochs = 1
    config.eval.update(samples=1, best_of=0, batch_size=2, lpips=False)
    config.log.images = False
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def data(monkeypatch):
    recordings = {
        "train": [moving_square("a", 9, 1), moving_square("b", 7, 2)],
        "validation": [moving_square("c", 6, 3)],
        "test": [moving_square("d", 6, 4)],
    }
    for module in ("train", "evaluation.evaluate"):
        monkeypatch.setattr(f"cvae_jax.{module}.load_data", lambda *a, **k: recordings)
    return recordings


def test_augmentation_changes_the_step(data):
    losses = []
    for shift in (0, 4):
        config = small_config(**{"augment.shift": shift, "augment.mirror": False})
        parts = Components.build(config)
        devices = Devices(jax.local_devices()[:1])
        step = devices.map_update(make_train_step(*parts.compiled, augmentation=parts.augmentation))
        state = TrainState.create(init_variables(parts.model, 0, (16, 12)), parts.optimizer)
        batch = devices.split(random_batch(length=3))
        losses.append(float(step(state, batch, step_controls([True, True]))[1]["loss"]))
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow, id="plain"),
        pytest.param({"adversarial.weight": 0.1, "adversarial.widths": (4, 8)}, id="adversarial"),
    ],
)
def test_a_run_resumes_bitwise_and_is_evaluated(data, tmp_path, changes):
    """The second sitting begins within an epoch, with the references and changes of the first."""
    config = small_config(**changes)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    final = train(config, whole, jax.local_devices()[:1])

    run = open_run(config, parted, jax.local_devices()[:1])
    kill_after_saving(run, 3)  # the second epoch's first step
    with pytest.raises(Killed):
        run.finish()
    assert same_bits(final, train(config, parted, jax.local_devices()[:1]))
    assert read_rows(parted) == read_rows(whole)

    evaluate(config, whole, devices=jax.local_devices()[:1])
    results = json.loads((whole / "eval" / "results.json").read_text())
    names = {row["name"] for row in results["rows"]}
    assert {"prior", "prior_mean", "posterior", "blend_poses", "oracle_training_frame"} <= names


@pytest.mark.slow
def test_the_model_learns_to_move_the_square(data, tmp_path):
    """In a few hundred steps it is 3 dB above the mean frame on a clip that it has not seen."""
    config = small_config(
        **{"num_epochs": 12, "data.repeats": 10, "data.clips_per_epoch": 120, "augment.mirror": False}
    )
    config.model.multiscale.widths = (8, 16)
    config.learning_rate.peak = 1e-2
    config.eval.every = 12
    train(config, tmp_path, jax.local_devices()[:1])
    evaluate(config, tmp_path, devices=jax.local_devices()[:1])
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    psnr = {row["name"]: row["psnr"] for row in results["rows"] if "scene" not in row}
    assert psnr["prior_mean"] > psnr["mean_frame"] + 3, psnr


def test_the_configs_describe_models_without_feedback():
    for module in (recommended, recommended_large, quickstart, own_video):
        parts = Components.build(module.get_config())
        assert not parts.model.sees_previous and parts.model.has_learned_prior
        assert parts.rollout.fold_time  # all steps of a clip are one batch, on any machine
