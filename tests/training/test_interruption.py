"""Runs that are stopped within an epoch and resumed: nothing tells them from a run that was not."""

import jax
import pytest
from helpers import Killed, kill_after_saving, moving_square, read_rows, same_bits, tiny_config

from cvae_jax.runtime.cache import Cache
from cvae_jax.train import open_run
from cvae_jax.training.checkpoint import Checkpoints
from cvae_jax.training.loop import Preempted

pytestmark = pytest.mark.usefixtures("small_model")

SIZE = (16, 16)
BATCHES = 3  # of an epoch: 4 + 4 + 1 clips
CRITIC = {"adversarial.weight": 0.1, "adversarial.widths": (4, 8)}
# Everything that draws random numbers, or changes from step to step.
COMMON = {
    "num_epochs": 2,
    "n_past": 2,
    "clip_length": 5,
    "data.reference": "random",
    "augment.shift": 2,
    "augment.zoom": 0.1,
    "augment.mirror": True,
    "augment.brightness": 0.1,
    "teacher_forcing.draw": "example_step",
    "beta.kind": "cyclical",
    "beta.cycle_length": 2.0,
    "learning_rate.per": "step",
    "eval.every": 2,
}


@pytest.fixture
def recordings(monkeypatch):
    clips = {
        "train": [moving_square("a", 26, 1, SIZE), moving_square("b", 20, 2, SIZE)],
        "validation": [moving_square("c", 6, 3, SIZE)],
    }
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: clips)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"model.cvae.history": 1, "model.cvae.prior": "learned"}, id="cvae"),
        pytest.param(
            {"model.kind": "multiscale", "model.multiscale.feedback": 2} | CRITIC,
            id="multiscale",
            marks=pytest.mark.slow,
        ),
        pytest.param({"model.kind": "svg", "model.svg.skip": "running_mean"}, id="svg"),
        pytest.param(
            {"model.kind": "svg", "model.svg.prior": "fixed", "rollout.cut_feedback": False},
            marks=pytest.mark.slow,
            id="svg-fixed-prior-uncut",
        ),
        pytest.param(
            {"model.kind": "svg", "optimizer.kind": "muon", "precision": "bfloat16"},
            marks=pytest.mark.slow,
            id="svg-muon-bfloat16",
        ),
    ],
)
def test_a_run_in_three_sittings_is_the_run_in_one(recordings, tmp_path, changes):
    """Asked to stop in the middle of the first epoch, and killed in that of the second."""
    config, one, cache = tiny_config(), jax.local_devices()[:1], Cache()
    config.update_from_flattened_dict(COMMON | changes)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    final = open_run(config, whole, one, cache).finish()
    assert int(final.step) == 2 * BATCHES
    rows = read_rows(whole)
    assert len({row["learning_rate"] for row in rows}) == 2 and 0 < rows[0]["teacher_forced"] < 1

    polls = iter((False, True))  # before the first step, after it
    with pytest.raises(Preempted) as stop:
        open_run(config, parted, one, cache).finish(lambda: next(polls))
    assert stop.value.step == 1
    run = open_run(config, parted, one, cache)
    kill_after_saving(run, BATCHES + 2)
    with pytest.raises(Killed):
        run.finish()
    assert len(read_rows(parted)) == 1
    assert same_bits(open_run(config, parted, one, cache).finish(), final)
    assert read_rows(parted) == rows
    with Checkpoints(whole, read_only=True) as one, Checkpoints(parted, read_only=True) as other:
        assert same_bits(other.restore(final, 2 * BATCHES)[0], one.restore(final, 2 * BATCHES)[0])
