"""How fast a run is, as its log says; traces; and what the backward pass computes again."""

import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import pytest
from helpers import flat, random_batch, step_controls, tiny_config

from cvae_jax import train as training
from cvae_jax.config import Components
from cvae_jax.models import flops
from cvae_jax.models.interface import init_variables
from cvae_jax.rollout.scan import REMAT
from cvae_jax.runtime import chips
from cvae_jax.runtime.backend import formulated_for
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.operations import Operations, count_operations
from cvae_jax.train import make_controls, make_step_options, train
from cvae_jax.training import throughput
from cvae_jax.training.profile import FOLDER, check_steps
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step

SIZE = (16, 12)
SVG = {"model.kind": "svg", "n_past": 2}


def device(kind, held=None):
    stats = None if held is None else {"peak_bytes_in_use": held}
    return mock.Mock(spec=jax.Device, device_kind=kind, memory_stats=lambda: stats)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `passes` moves."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


@pytest.fixture
def known_chip(monkeypatch):
    """This CPU, as if it were an accelerator with known peaks."""
    (kind,) = {device.device_kind for device in jax.local_devices()}
    rates = {"float32": 1e9, "bfloat16": 1e10}
    chip = dataclasses.replace(chips.ACCELERATORS["h100"], rates=rates, kinds=(kind,))
    monkeypatch.setitem(chips.ACCELERATORS, "h100", chip)


def test_an_epochs_rate_leaves_out_its_compilation(clock):
    count = lambda *_: pytest.fail("the peak is not known")  # noqa: E731
    meter = throughput.Throughput(15, count, [device("unknown")]).epoch()
    meter.of.count_operations()
    clock(20.0)
    meter.begin()
    meter.step(10, 0.5)  # compiled
    assert meter.frames_per_second is None
    clock(2.0)
    meter.step(10, 0.5)
    meter.leave_out(3.0)  # a trace was written
    clock(3.0)
    meter.step(4, 0.5)
    clock(1.0)
    assert meter.shown == {"frames/s": "70"}
    assert meter.fields() == {
        "frames_per_second": 14 * 15 / 3,
        "mfu": None,
        "compile_seconds": 20.0,
        "device_memory_bytes": None,
    }


def test_runs_that_share_a_device_have_no_rates(clock, known_chip):
    kind = jax.local_devices()[0].device_kind
    count = lambda *_: pytest.fail("nothing to count for")  # noqa: E731
    measured = throughput.Throughput(1, count, [device(kind, 5)], is_shared=True)
    measured.count_operations()
    meter = measured.epoch()
    meter.step(1, 1.0)
    clock(1.0)
    fields = meter.fields()
    assert fields["frames_per_second"] is None and fields["mfu"] is None and meter.shown == {}
    assert fields["device_memory_bytes"] == 5


def test_the_share_of_the_peak_weights_steps_by_what_they_were_given(clock, known_chip):
    kind = jax.local_devices()[0].device_kind
    devices = [device(kind, held) for held in (5, 7)]
    operations = Operations({"float32": 10**9, "bfloat16": 10**10}), Operations({"float32": 4 * 10**9})
    measured = throughput.Throughput(1, lambda *_: operations, devices)
    measured.count_operations()
    meter = measured.epoch()
    for forced_share in (1.0, 0.0, 0.25):
        meter.step(1, forced_share)
    clock(20.0)
    fields = meter.fields()
    assert fields["mfu"] == pytest.approx((2 + 4 + 0.25 * 2 + 0.75 * 4) / 20)
    assert fields["device_memory_bytes"] == 7 and fields["compile_seconds"] == 0


def operations_of(config, size=(32, 64)):
    """What `train` counts for a run of a config, and the operations of its compiled step."""
    parts = Components.build(config)
    devices = Devices(jax.local_devices()[:1])
    options = make_step_options(config, parts, make_controls(config, parts, 10))
    state = jax.eval_shape(lambda: training.initial_state(parts, 0, size, None))
    steps = config.clip_length - 1
    batch = devices.split(random_batch(config.batch_size, config.clip_length, size))
    arguments = state, batch, step_controls(np.zeros(steps, bool))
    step = devices.map_update(make_train_step(*parts.compiled, **options))
    counted = training.model_operations(parts, options, devices, *arguments)
    return counted, count_operations(jax.make_jaxpr(step)(*arguments))


def test_the_operations_of_the_reports_model_are_those_counted_by_hand():
    config = tiny_config()
    params = init_variables(Components.build(config).model, 0, (32, 64))["params"]
    frames = config.batch_size * (config.clip_length - 1)
    with formulated_for("gpu"):
        counted, _ = operations_of(config)
    for forced, found in zip((True, False), counted, strict=True):
        by_hand = frames * flops.training_flops(params, 32 * 64, forced)
        assert found.total_flops == pytest.approx(by_hand, rel=0.02)


@pytest.mark.slow
def test_what_is_computed_again_is_no_part_of_the_models_operations():
    config = tiny_config()
    config.update_from_flattened_dict(SVG | {"data.frame_size": (64, 64), "rollout.time_chunk": 1})
    (model, _), program = operations_of(config, (64, 64))
    assert 1.2 < program.total_flops / model.total_flops < 1.4  # a third of it is the forward pass
    config.rollout.remat = "elementwise"
    _, program = operations_of(config, (64, 64))
    assert program.total_flops == pytest.approx(model.total_flops, rel=0.02)


@pytest.mark.parametrize("forced", [True, False])
def test_what_is_computed_again_does_not_change_the_gradient(forced):
    config = tiny_config()
    config.update_from_flattened_dict({"model.kind": "multiscale", "model.multiscale.feedback": 1})
    config.rollout.update(cut_feedback=False, time_chunk=1)
    parts = Components.build(config)
    variables = init_variables(parts.model, 0, SIZE)
    devices = Devices(jax.local_devices()[:1])
    moved = {}
    for remat in REMAT:
        rollout = dataclasses.replace(parts.rollout, remat=remat)
        compiled = dataclasses.replace(parts, rollout=rollout).compiled
        step = devices.map_update(make_train_step(*compiled))
        state = TrainState.create(variables, parts.optimizer)
        batch = devices.split(random_batch(2, 4, SIZE))
        state, metrics = step(state, batch, step_controls(np.full(3, forced)))
        moved[remat] = flat(state.params) - flat(variables["params"]), float(metrics["loss"])
    for remat in ("elementwise", "none"):
        assert moved[remat][1] == pytest.approx(moved["all"][1], rel=1e-5)
        distance = np.linalg.norm(moved[remat][0] - moved["all"][0])
        assert distance < 0.02 * np.linalg.norm(moved["all"][0])


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_its_throughput_and_traces_the_steps_asked_for(
    data, small_model, known_chip, tmp_path, capsys
):
    config = tiny_config()
    config.profile_steps = (1, 3)
    train(config, tmp_path, jax.local_devices()[:1])
    first, second, third = rows_of(tmp_path)
    assert first["compile_seconds"] > 0 and second["compile_seconds"] == third["compile_seconds"] == 0
    for row in (second, third):
        seconds = row["train_seconds"]
        frames = 6 * (config.clip_length - 1)
        # The trace and the writing of it have no part in the rate.
        assert row["frames_per_second"] * seconds >= 0.99 * frames
        assert 0 < row["mfu"]
    assert third["frames_per_second"] * third["train_seconds"] == pytest.approx(frames, rel=0.05)
    assert second["frames_per_second"] < 3 * third["frames_per_second"]
    (trace,) = (tmp_path / FOLDER).rglob("perfetto_trace.json.gz")
    assert trace.stat().st_size > 1000
    said = " ".join(capsys.readouterr().err.split())
    assert f"The steps 1 to 2 are traced in {tmp_path / FOLDER}." in said


@pytest.mark.parametrize("steps", [(3,), (3, 3), (-1, 2), (True, 2), (1.0, 2), ("1", 2), (1, 2, 3)])
def test_steps_that_cannot_be_traced_are_refused(steps):
    with pytest.raises(UserError, match="config.profile_steps is .*10, 11 and 12"):
        check_steps(steps)


def test_steps_after_the_end_of_the_run_are_refused_before_anything_is_written(data, small_model, tmp_path):
    config = tiny_config()
    config.profile_steps = (5, 7)
    with pytest.raises(UserError, match=r"profile_steps is \(5, 7\), but the run has 6 steps"):
        train(config, tmp_path / "run", jax.local_devices()[:1])
    assert not (tmp_path / "run").exists()
