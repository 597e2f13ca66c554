"""What a run writes for people to look at: TensorBoard, and Weights & Biases if asked for."""

import sys
import types

import numpy as np
import pytest
from helpers import moving_square

from cvae_jax import defaults
from cvae_jax.runtime.errors import UserError
from cvae_jax.training.logging import Writers, require_wandb, start_wandb

ROW = {
    "epoch": 0,
    "step": 7,
    "train_loss": 0.5,
    "val_loss": None,
    "val_psnr_prior": 21.0,
    "val_psnr_prior_by_scene": {"square": 21.0},
}


def events(workdir):
    """{tag: [steps]} of every scalar and image written under a workdir."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(workdir), size_guidance={"tensors": 0}).Reload()
    return {tag: [e.step for e in found.Tensors(tag)] for tag in found.Tags()["tensors"]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("images", [True, False])
def test_tensorboard_has_scalars_curves_and_strips(tmp_path, images):
    clip = moving_square("a", 6, 1)
    curve = list(np.arange(30.0, 25.0, -1))
    writers = Writers(tmp_path, images)
    writers.epoch(ROW)
    per_frame = {"square": {"prior": curve, "posterior": curve}}
    writers.validation(7, per_frame, {"square": {"truth": clip.frames, "prior": clip.frames}})
    writers.close()
    written = events(tmp_path)
    assert written["train_loss"] == written["val_psnr_prior_by_scene/square"] == [7]
    assert "val_loss" not in written  # null in epochs without validation
    assert written["per_frame_psnr_prior/square/step_7"] == [1, 2, 3, 4, 5]
    assert written["per_frame_psnr_posterior/square/step_7"] == [1, 2, 3, 4, 5]
    assert ("validation/square" in written) == images


class Recorder(types.ModuleType):
    """Stands in for the wandb package and remembers what it was told."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.Error = [], ConnectionError

    def init(self, **settings):
        run = types.SimpleNamespace(settings=settings, logged=[], finished=False)
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


def test_wandb_gets_the_epochs_and_a_resumed_run_continues_it(tmp_path, monkeypatch):
    wandb = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = defaults.get_config()
    config.wandb = True
    for _ in range(2):
        writers = Writers(tmp_path, True, start_wandb(config, tmp_path))
        writers.epoch(ROW)
        writers.close()
    first, second = wandb.runs
    assert first.settings["id"] == second.settings["id"] and first.settings["resume"] == "allow"
    assert first.settings["config"]["beta"]["kind"] == "none"
    assert first.settings["dir"] == str(tmp_path) and first.finished
    scalars = {"epoch": 0, "train_loss": 0.5, "val_psnr_prior": 21.0}
    assert first.logged == [(7, scalars | {"val_psnr_prior_by_scene/square": 21.0})]


def test_wandb_that_cannot_start_is_a_sentence(tmp_path, monkeypatch):
    wandb = Recorder()

    def refuse(**settings):
        raise wandb.Error("api_key not configured\n(no-tty)")

    wandb.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError, match=r"cannot start \(api_key not .* \(no-tty\)\): run `wandb login`"):
        start_wandb(defaults.get_config(), tmp_path)


def test_wandb_that_is_not_installed_or_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    Writers(tmp_path, True).close()
    with pytest.raises(UserError, match="config.wandb=True needs the wandb package"):
        require_wandb()
