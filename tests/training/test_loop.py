"""Training runs: devices, guard, one compilation, resume, what is written."""

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Killed, kill_after_saving, read_rows, same_bits, tiny_config

from cvae_jax.config import Components
from cvae_jax.evaluation.validation import FIELDS, Validated
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.devices import Devices, prefetch
from cvae_jax.runtime.errors import NonFiniteError, UserError
from cvae_jax.runtime.workdir import METRICS_FILE
from cvae_jax.train import open_run, train
from cvae_jax.training.checkpoint import Checkpoints
from cvae_jax.training.controls import Controls
from cvae_jax.training.resume import append_row, keep_rows
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("small_model")


@pytest.mark.parametrize(("n_past", "history"), [(1, 0), (3, 1)])
def test_run_compiles_its_step_once_and_resumes_bitwise(data, tmp_path, caplog, n_past, history):
    """A run with changing beta, ratio and learning rate; then the same run in two sittings."""
    config = tiny_config()
    config.n_past, config.model.cvae.history = n_past, history
    config.beta.kind = "cyclical"
    config.beta.cycle_length = 2.0
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    jax.config.update("jax_log_compiles", True)
    with caplog.at_level(logging.WARNING):
        final = train(config, whole, jax.local_devices()[:1])
    jax.config.update("jax_log_compiles", False)
    compiled = [r.message for r in caplog.records if "Compiling" in r.message]
    takes_a_state = "(ShapedArray(int32[]), ShapedArray(float32"  # the step counter, then parameters
    assert len([m for m in compiled if takes_a_state in m]) == 1, compiled

    rows = read_rows(whole)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert len({row["learning_rate"] for row in rows}) == 3
    assert len({row["beta"] for row in rows}) > 1
    assert all(
        row["train_loss"] == pytest.approx(row["recon"] + row["beta"] * row["kl"], rel=1e-3) for row in rows
    )
    expected = {
        "epoch",
        "step",
        "train_loss",
        "recon",
        "kl",
        "beta",
        "teacher_forcing_ratio",
        "teacher_forced",
        "learning_rate",
        "val_loss",
        "val_psnr_prior",
        "val_psnr_posterior",
    }
    assert expected <= rows[0].keys()
    assert list(whole.glob("events.out.tfevents*"))

    run = open_run(config, parted, jax.local_devices()[:1])
    cut_short = {"epoch": 1, "cut": "short"}
    kill_after_saving(
        run, 3, lambda: append_row(parted / METRICS_FILE, cut_short)
    )  # in the middle of epoch 1
    with pytest.raises(Killed):
        run.finish()
    again = train(config, parted, jax.local_devices()[:1])
    assert same_bits(final, again)
    assert read_rows(parted) == rows


def test_resume_with_another_config_is_refused_naming_the_field(data, tmp_path, capsys):
    config = tiny_config()
    config.learning_rate.peak = 7e-3
    open_run(config, tmp_path, jax.local_devices()[:1]).writers.close()
    config.learning_rate.peak = 1e-3  # nothing is trained yet: any config may follow
    run = open_run(config, tmp_path, jax.local_devices()[:1])
    run.describe()
    run.resources.close()
    (tmp_path / "checkpoints" / "0").mkdir(parents=True)
    config.learning_rate.peak = 5e-3
    with pytest.raises(UserError, match=r"config\.learning_rate\.peak is 0\.005 but was 0\.001"):
        open_run(config, tmp_path)
    config.learning_rate.peak = 1e-3
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"clip_norm"', '"clip"'))
    with pytest.raises(UserError, match="has fields this version does not know: 'optimizer.clip'"):
        open_run(config, tmp_path)
    (tmp_path / "config.json").write_text(text)
    config.checkpoint.keep = 7
    config.num_epochs = 2
    with pytest.raises(UserError, match=r"config\.num_epochs is 2 but was 3"):
        open_run(config, tmp_path, extend=True)  # only a longer run can be asked for
    config.num_epochs = 5
    longer = r"config\.num_epochs is 5 but was 3.*the learning rate's cosine.*--extend"
    with pytest.raises(UserError, match=re.compile(longer, re.IGNORECASE)):
        open_run(config, tmp_path)
    capsys.readouterr()
    run = open_run(config, tmp_path, extend=True)
    run.describe()
    run.resources.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "from 3 to 5 epochs" in line and "the learning rate's cosine is stretched" in line
    assert "beta" not in line  # this one counts epochs of its own
    open_run(config, tmp_path).writers.close()  # 5 is its length now
    assert "Extending" not in capsys.readouterr().err
    data["train"] = data["train"][:1]
    with pytest.raises(UserError, match="was trained on other data"):
        open_run(config, tmp_path)


def test_a_workdir_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to the folder"):
        open_run(tiny_config(), tmp_path / "file")


def test_guard_stops_and_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    config = tiny_config()
    config.num_epochs = 1
    config.eval.every = 5
    good = train(config, tmp_path, jax.local_devices()[:1])
    config.num_epochs = 2
    run = open_run(config, tmp_path, jax.local_devices()[:1], extend=True)
    values = Controls.values
    monkeypatch.setattr(Controls, "values", lambda self, e, n: values(self, e, n) | {"beta": float("nan")})
    with pytest.raises(NonFiniteError, match="epoch 2, batch 1: the loss is nan"):
        run.finish()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps == [2]
        state, progress = checkpoints.restore(good, 2)
    assert same_bits(state, good) and progress.epoch == 1
    assert len(read_rows(tmp_path)) == 1


def test_step_with_a_non_finite_gradient_leaves_the_state_alone():
    parts = Components.build(tiny_config())
    devices = Devices(jax.local_devices()[:1])
    state = TrainState.create(init_variables(parts.model, 0, (16, 12)), parts.optimizer)
    batch = {
        "frames": np.zeros((1, 4, 4, 16, 12, 3), np.uint8),
        "labels": np.zeros((1, 4, 4, 16, 12, 3), np.uint8),
        "mask": np.ones((1, 4), np.float32),
        "index": np.zeros((1, 4), np.int32),
    }
    controls = {
        "seed": np.uint32(0),
        "beta": np.float32(np.inf),
        "learning_rate": np.float32(1e-3),
        "forced": np.zeros(3, bool),
    }
    before = jax.tree.map(np.array, state)
    after, metrics = devices.map_update(make_train_step(*parts.compiled))(state, batch, controls)
    assert not bool(metrics["finite"])
    assert same_bits(after, before.replace(step=after.step)) and after.step == 1


def test_the_old_state_makes_room_for_the_new_one():
    """It is donated: no second copy of the optimiser's state is ever on the device."""
    parts = Components.build(tiny_config())
    devices = Devices(jax.local_devices()[:2])
    variables = init_variables(parts.model, 0, (16, 12))
    state = devices.place(TrainState.create(variables, parts.optimizer))
    step = devices.map_update(make_train_step(*parts.compiled))
    batch = devices.split(
        {
            "frames": np.zeros((4, 4, 16, 12, 3), np.uint8),
            "labels": np.zeros((4, 4, 16, 12, 3), np.uint8),
            "mask": np.ones(4, np.float32),
            "index": np.arange(4, dtype=np.int32),
        }
    )
    controls = {
        "seed": np.uint32(0),
        "beta": np.float32(1),
        "learning_rate": np.float32(1e-3),
        "forced": np.zeros(3, bool),
    }
    state, _ = step(state, batch, controls)
    saved = jax.device_get(state)  # as a checkpoint that is still being written holds it
    copy = jax.tree.map(np.array, saved)
    after, _ = step(state, batch, controls)
    del state
    assert same_bits(saved, copy)
    last, _ = step(after, batch, controls)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    assert int(last.step) == 3


def test_an_epoch_does_not_wait_for_the_device(data, tmp_path, monkeypatch):
    """Batches are sent two ahead, and a step's metrics are fetched when the next one is on its way."""
    config = tiny_config()
    config.num_epochs = 2
    config.batch_size = 1
    run = open_run(config, tmp_path / "run", jax.local_devices()[:1])
    events = []
    split, step, fetch = run.devices.split, run.train_step, jax.device_get

    def note(event, function):
        def noted(*arguments):
            events.append(event)
            return function(*arguments)

        return noted

    run.devices.split = note("send", split)
    run.train_step = note("step", step)
    fields = dict.fromkeys(FIELDS)
    monkeypatch.setattr(run, "_validate", lambda *_: Validated(fields, {}, {}))
    monkeypatch.setattr("cvae_jax.training.loop.jax.device_get", note("fetch", fetch))
    monkeypatch.setattr(run.checkpoints, "save", lambda *_, **__: None)
    run.finish()
    batches = run.loader.num_batches
    epoch = ["send", "send", "step", "send", "step", "fetch"]
    epoch += ["send", "step", "fetch"] * (batches - 3) + ["step", "fetch"] * 1 + ["fetch"]
    assert batches >= 4
    assert events == epoch * 2


def test_prefetch_keeps_the_order_and_the_end():
    made = []

    def items():
        for n in range(4):
            made.append(n)
            yield n

    seen = [(item, len(made)) for item in prefetch(items(), ahead=2)]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(prefetch(iter([]))) == []


def test_checkpoints_kept_are_the_newest_the_best_and_the_periodic(tmp_path):
    from cvae_jax.training.checkpoint import Progress

    state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(2)}, {}, (), None)
    with Checkpoints(tmp_path, keep=2, period=4) as checkpoints:
        for step, psnr in zip(range(1, 11), [1, 2, 9, 3, 4, 5, 6, 7, 8, None], strict=True):
            metrics = None if psnr is None else {"val_psnr_prior": float(psnr)}
            checkpoints.save(step, state, Progress(step), metrics)
        checkpoints.wait()
        assert checkpoints.steps == [3, 4, 8, 9, 10]
        assert checkpoints.find("best") == 3
        assert checkpoints.find("last") == 10
        assert checkpoints.find("8") == 8
        with pytest.raises(UserError, match="choose best, last or one of the steps 3, 4, 8, 9, 10"):
            checkpoints.find("7")


def test_a_row_has_null_where_a_number_is_not_finite(tmp_path):
    append_row(tmp_path / METRICS_FILE, {"epoch": 0, "val_loss": float("inf"), "by": {"a": float("nan")}})
    assert read_rows(tmp_path) == [{"epoch": 0, "val_loss": None, "by": {"a": None}}]


def test_a_score_that_is_not_a_number_is_no_best(data, small_model, tmp_path):
    """Orbax would sort it among the others, and could delete the true best."""
    config = tiny_config()
    run = open_run(config, tmp_path, jax.local_devices()[:1])
    run.cadence = dataclasses.replace(run.cadence, num_epochs=3)
    validate, scores = run.validate, iter([9.0, float("nan"), 8.0])

    class Scored:
        empty = validate.empty

        def run(self, *arguments):
            found = validate.run(*arguments)
            return found._replace(fields=found.fields | {"val_psnr_prior": next(scores)})

    run.validate = Scored()
    run.finish()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert (checkpoints.find("best"), checkpoints.find("last")) == (2, 6)


def test_rows_of_unfinished_epochs_are_dropped(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text('{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2, "cut')
    keep_rows(path, 1)
    assert path.read_text() == '{"epoch": 0}\n'


def test_rows_that_are_doubled_or_lost(tmp_path, capsys):
    path = tmp_path / METRICS_FILE
    rows = [b'{"epoch": 0, "kl": 0.1}', b'{"epoch": 1}', b'{"epoch": 1}', b'{"epoch": 2}', b'{"epoch": 4}']
    path.write_bytes(b"\n".join([*rows, b"\xff\x00"]))
    keep_rows(path, 4)
    assert path.read_bytes() == b'{"epoch": 0, "kl": 0.1}\n{"epoch": 1}\n{"epoch": 2}\n'
    assert (
        "metrics.jsonl is damaged: the rows of the epochs 3 (counted from 0) are missing."
        in capsys.readouterr().err
    )
    keep_rows(path, 3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "line", [b"\xff\xfe{\x00", b"{}", b"[1]", b"3", b'{"epoch": null}', b'{"epoch": "1"}', b""]
)
def test_a_line_that_is_no_row_is_named_and_nothing_is_changed(tmp_path, line):
    path = tmp_path / METRICS_FILE
    content = b'{"epoch": 0}\n' + line + b'\n{"epoch": 1}\n'
    path.write_bytes(content)
    with pytest.raises(UserError, match="^Line 2 of .*metrics.jsonl is not a row of an epoch"):
        keep_rows(path, 1)
    assert path.read_bytes() == content
