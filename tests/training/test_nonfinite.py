"""Steps that are not finite: stop, or skip them."""

import itertools

import jax
import numpy as np
import pytest
from helpers import read_rows, same_bits, tiny_config

from cvae_jax.runtime.errors import NonFiniteError, UserError
from cvae_jax.train import open_run, train
from cvae_jax.training.checkpoint import Checkpoints
from cvae_jax.training.controls import Controls
from cvae_jax.training.nonfinite import NonFinite

pytestmark = pytest.mark.usefixtures("small_model")
GOOD = {"finite": 1.0, "loss": 1.0, "grad_norm": 1.0}
BAD = {"finite": 0.0, "loss": float("nan"), "grad_norm": 2.0}


def skipping(**changes):
    config = tiny_config()
    config.nonfinite = "skip"
    config.update(changes)
    return config


@pytest.fixture
def plant(monkeypatch):
    """Plants a NaN in the chosen batches, (epoch, number), by way of beta, which every loss is made with."""
    values = Controls.values

    def planted(*chosen):
        bad = lambda e, n: {"beta": float("nan")} if (e, n) in chosen else {}  # noqa: E731
        monkeypatch.setattr(Controls, "values", lambda self, e, n: values(self, e, n) | bad(e, n))

    return planted


def test_a_skipped_step_is_as_if_its_batch_were_not_there(data, tmp_path, plant):
    """But for the number of the step, which addresses the noise of those that follow."""
    plant((1, 0))
    state = train(skipping(), tmp_path, jax.local_devices()[:1])
    assert int(state.step) == 6
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0]
    assert [int(count) for count in counts] == [5]
    rows = read_rows(tmp_path)
    assert [row["skipped_steps"] for row in rows] == [0, 1, 0]
    for row in rows:
        assert all(np.isfinite([row["train_loss"], row["kl"], row["grad_norm"], row["teacher_forced"]]))
        assert set(row["grad_norm_by_module"]) == set(row["param_norm_by_module"]) == set(state.params)
    total = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(state.params["generator"])))
    assert rows[-1]["param_norm_by_module"]["generator"] == pytest.approx(total, rel=1e-2)


def test_the_norms_of_modules_make_up_the_whole_norm(data, tmp_path):
    config = tiny_config()
    config.batch_size, config.num_epochs = 6, 1  # a single step, so that means are values
    train(config, tmp_path, jax.local_devices()[:1])
    (row,) = read_rows(tmp_path)
    squares = sum(norm**2 for norm in row["grad_norm_by_module"].values())
    assert np.sqrt(squares) == pytest.approx(row["grad_norm"], rel=1e-5)


def test_too_many_in_a_row_stop_at_the_last_good_state_which_resumes(data, tmp_path, plant, capsys):
    config = skipping(nonfinite_limit=2)
    good = train(skipping(num_epochs=1), tmp_path / "good", jax.local_devices()[:1])
    plant((1, 0), (1, 1), (2, 0))
    with pytest.raises(
        NonFiniteError,
        match="after skipping 2 steps in a row .* at epoch 2, batch 2",
    ):
        train(config, tmp_path / "run", jax.local_devices()[:1])
    assert capsys.readouterr().err.count("Skipped one step at epoch 2, batch") == 2
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        state, progress = checkpoints.restore(good, checkpoints.find("last"))
    assert (progress.epoch, progress.batch, progress.sums["skipped"]) == (1, 2, 2)
    assert same_bits(state.params, good.params)

    state = train(config, tmp_path / "run", jax.local_devices()[:1])
    assert int(state.step) == 6
    assert [row["skipped_steps"] for row in read_rows(tmp_path / "run")] == [0, 2, 1]
    assert read_rows(tmp_path / "run")[1]["train_loss"] is None


def test_single_bad_steps_do_not_add_up():
    counted = NonFinite("skip", limit=2)
    for values in itertools.islice(itertools.cycle([BAD, GOOD]), 10):
        assert counted.meets(values, 0, 0) != bool(values["finite"])
    assert not counted.stops
    assert counted.meets(BAD, 1, 0) and counted.meets(BAD, 2, 0) and counted.stops


def test_stopping_names_the_way_to_go_on():
    counted = NonFinite("stop")
    assert counted.meets(BAD, 1, 3) and counted.stops
    sentence = "epoch 4, batch 2: the loss is nan and .*; the last is 7. .* or resume this one with --config."
    with pytest.raises(NonFiniteError, match=sentence):
        raise counted.error("the last is 7")
    counted = NonFinite("stop")
    assert counted.meets(BAD | {"loss": 1.0}, 1, 3)
    assert "but a new parameter is not finite" in str(counted.error(""))


@pytest.mark.parametrize(("field", "value"), [("nonfinite", "ignore"), ("nonfinite_limit", 0)])
def test_fields_that_make_no_sense(data, tmp_path, field, value):
    with pytest.raises(UserError, match=f"config.{field} is"):
        open_run(skipping(**{field: value}), tmp_path / "run")
