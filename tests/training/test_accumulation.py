"""A batch taken in parts has the gradient of the whole batch."""

import jax
import numpy as np
import pytest
from helpers import flat, pad_to_devices, random_batch, step_controls, tiny_config
from ml_collections import ConfigDict

from configs import quickstart
from cvae_jax.config import Components
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.train import open_run, train
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step

MSE = {"loss.reconstruction": "mse", "loss.kl": "per_element"}


def small(**changes) -> ConfigDict:
    config = quickstart.get_config()
    config.model.multiscale.update(widths=(8, 16), latent_channels=2, position_octaves=1)
    config.update(num_epochs=2, batch_size=4, clip_length=3)
    config.data.clips_per_epoch = 5
    config.optimizer.kind = "adam"  # it compiles faster than Muon
    config.optimizer.eps = 1e-5  # so that rounding in the smallest gradients does not count
    config.eval.update(samples=1, best_of=0, batch_size=2, lpips=False)
    config.log.images = False
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (2, {}),
        pytest.param(1, MSE | {"augment.shift": 2}, marks=pytest.mark.slow),
        pytest.param(1, {"adversarial.weight": 1.0}, marks=pytest.mark.slow),
        pytest.param(1, {"model.multiscale.feedback": 1}, marks=pytest.mark.slow),
    ],
    ids=["calibrated", "mse", "critic", "feedback"],
)
def test_parts_have_the_gradient_of_the_whole(changes, count):
    """Seven clips, of which one is filling, in one part and in four."""
    parts = Components.build(small(**changes))
    variables = init_variables(parts.model, 0, (16, 12))
    batch, controls = random_batch(7, 3), step_controls([True, False])
    devices = Devices(jax.local_devices()[:count])
    found, ends = [], []
    for steps in (1, 4):
        step = devices.map_update(
            make_train_step(*parts.compiled, augmentation=parts.augmentation, accumulate_steps=steps)
        )
        state = devices.place(TrainState.create(variables, parts.optimizer))
        state, metrics = step(state, devices.split(pad_to_devices(batch, 8)), controls)
        found.append({name: float(value) for name, value in metrics.items()})
        ends.append(flat(state.params))
    whole, several = found
    moved = np.linalg.norm(ends[0] - flat(variables["params"]))
    assert np.linalg.norm(ends[1] - ends[0]) < 0.01 * moved
    assert several.keys() == whole.keys()
    for name, value in several.items():  # the norms of all modules' gradients among them
        assert value == pytest.approx(whole[name], rel=1e-4, abs=1e-7), name


@pytest.mark.slow
def test_a_run_in_parts(data, tmp_path):
    """Three parts of a batch of four clips, which is filled up to six, and of a last one of a single clip."""
    whole = train(small(), tmp_path / "whole", jax.local_devices()[:1])
    parted = train(small(accumulate_steps=3), tmp_path / "parted", jax.local_devices()[:1])
    frame_size = data["train"][0].frames.shape[1:3]
    start = flat(init_variables(Components.build(small()).model, small().seed, frame_size)["params"])
    moved = np.linalg.norm(flat(whole.params) - start)
    assert np.linalg.norm(flat(whole.params) - flat(parted.params)) <= 0.02 * moved


@pytest.mark.usefixtures("small_model")
def test_models_with_batch_statistics_are_refused(data, tmp_path):
    config = tiny_config()
    config.accumulate_steps = 2
    with pytest.raises(UserError, match="config.model.cvae normalises with statistics of the whole batch"):
        open_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
