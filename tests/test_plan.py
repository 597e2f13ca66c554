"""The plan of a run: counts against hand counts and real states, memory on a line, the script, all chips."""

import dataclasses
import json
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from helpers import ROOT, TINY, tiny_config
from jax import lax
from ml_collections import ConfigDict

from cvae_jax import defaults, plan
from cvae_jax.config import Components
from cvae_jax.data.datasets import kth, real_clips
from cvae_jax.data.load import known_shapes, load_data
from cvae_jax.models import flops, ops
from cvae_jax.models.interface import init_variables
from cvae_jax.planning.estimates import estimate, sum_seconds
from cvae_jax.planning.plan import make_plan
from cvae_jax.planning.program import Step, largest_batch, memory_of
from cvae_jax.planning.report import in_bytes, in_time, to_json, to_text
from cvae_jax.runtime import cli
from cvae_jax.runtime.backend import formulated_for
from cvae_jax.runtime.chips import ACCELERATORS, CHIPS, MEASURED, Chip
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.operations import Operations, count_operations
from cvae_jax.train import make_controls, open_run
from cvae_jax.training.state import TrainState

SIZE = (16, 12)
DOCUMENTED = json.loads((ROOT / "tests" / "fixtures" / "steps_h100.json").read_text())["cases"]


def small_config(**changes) -> ConfigDict:
    config = tiny_config()
    config.data.frame_size = SIZE
    config.update(changes)
    return config


def step_of(config, size=SIZE) -> Step:
    parts = Components.build(config)
    return Step(config, parts, make_controls(config, parts, 10), size, None)


def counted(function, *shapes, dtype=jnp.float32) -> Operations:
    return count_operations(
        jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    )


def test_loops_count_as_often_as_they_run_and_branches_as_the_costlier():
    def run(x, y, choose):
        def body(carry, _):
            return jnp.tanh(carry @ y), None

        looped, _ = lax.scan(body, x, length=7)
        cheap, dear = lambda: looped, lambda: (looped @ y) @ y
        return lax.cond(choose.sum() > 0, cheap, dear)

    found = counted(run, (3, 5), (5, 5), (1,))
    assert found.flops == {"float32": (7 + 2) * 2 * 3 * 5 * 5} and found.number == 7 + 2
    assert found.bytes == (7 + 2) * 4 * (3 * 5 + 5 * 5 + 3 * 5)
    half = counted(lambda x, y: x @ y, (3, 5), (5, 4), dtype=jnp.bfloat16)
    assert half.flops == {"bfloat16": 2 * 3 * 5 * 4} and half.bytes == 2 * (15 + 20 + 12)
    batched = counted(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), (2, 3, 5), (2, 5, 4))
    assert batched.total_flops == 2 * 2 * 3 * 5 * 4


CONVOLUTIONS = {
    "padded": ((2, 8, 6, 4), (3, 3, 4, 5), dict(padding="SAME"), 2 * 2 * 4 * 5 * (3 * 8 - 2) * (3 * 6 - 2)),
    "strided": (
        (2, 8, 6, 4),
        (2, 2, 4, 5),
        dict(padding="VALID", window_strides=(2, 2)),
        2 * 2 * 4 * 5 * 8 * 6,
    ),
    "depthwise": (
        (2, 8, 6, 4),
        (1, 1, 1, 4),
        dict(padding="SAME", feature_group_count=4),
        2 * 2 * 4 * 8 * 6,
    ),
    "enlarging": (
        (2, 8, 6, 4),
        (2, 2, 4, 5),
        dict(padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
        2 * 2 * 4 * 5 * 2 * 8 * 2 * 6,
    ),
}


@pytest.mark.parametrize("image, kernel, options, by_hand", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolutions_count_as_by_hand_and_their_gradients_as_xla_counts_them(
    image, kernel, options, by_hand
):
    options = {"window_strides": (1, 1)} | options

    def convolve(x, k):
        return lax.conv_general_dilated(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    assert counted(convolve, image, kernel).total_flops == by_hand

    def both(x, k, g):
        return jax.vjp(convolve, x, k)[1](g)

    out = jax.eval_shape(convolve, jnp.zeros(image), jnp.zeros(kernel)).shape
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (image, kernel, out)]
    of_xla = jax.jit(both).lower(*shapes).cost_analysis()["flops"]
    # Neither counts the forward pass, whose result is not used.
    assert counted(both, image, kernel, out).total_flops == pytest.approx(of_xla, rel=0.02)


@pytest.fixture(scope="module")
def full_size():
    """(operations, configured step) of the report's CVAE, teacher-forced and autoregressive, as on a GPU."""
    found = {}
    for forced in (True, False):
        config = defaults.get_config()
        config.teacher_forcing.update(kind="constant", initial=float(forced))
        with formulated_for("gpu"):
            step = step_of(config, (32, 64))
            found[forced] = step.operations(config.batch_size), step
    return found


@pytest.mark.parametrize("forced", [True, False])
def test_a_steps_operations_are_those_counted_by_hand(full_size, forced):
    operations, step = full_size[forced]
    config = step.config
    frames = config.batch_size * (config.clip_length - 1)
    by_hand = frames * flops.training_flops(step.state.params, 32 * 64, forced)
    assert operations.flops == {"float32": pytest.approx(by_hand, rel=0.02)}


@pytest.mark.parametrize("forced", [True, False])
def test_the_estimate_is_what_was_measured_on_an_h100(full_size, forced):
    (case,) = [c for c in DOCUMENTED if c["recipe"] == "report" and c["teacher_forced"] == forced]
    operations, step = full_size[forced]
    assert (case["batch"], case["frames"]) == (step.config.batch_size, step.config.clip_length)
    measured = statistics.median(case["ms"])
    found = 1e3 * estimate(operations, ACCELERATORS["h100"]).total / measured
    # Since the measurement, the autoregressive step computes features for several frames at once.
    assert 0.95 < found < 1.05 if forced else 0.85 < found < 0.95
    assert f"{measured:.0f} ms" in MEASURED


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(DOCUMENTED)))
def test_the_page_compares_estimates_with_all_steps_measured_on_an_h100(number):
    from benchmarks.accelerator_cases import Case, config_of

    fields = {name: DOCUMENTED[number][name] for name in ("title", "recipe", "batch", "frames", "precision")}
    case = Case(**fields, optimizer=DOCUMENTED[number]["optimizer"])
    config = config_of(case, tiny=False)
    config.batch_size, config.clip_length = case.batch, case.frames
    config.teacher_forcing.update(kind="constant", initial=float(DOCUMENTED[number]["teacher_forced"]))
    if case.recipe == "recommended":  # as it was when it was measured
        config.augment.shift = 0
        widths = DOCUMENTED[number]["widths"] or (48, 72, 96)
        config.model.multiscale.update(patch=2, widths=tuple(widths), latent_channels=4)
    with formulated_for("gpu"):
        found = estimate(step_of(config, (32, 64)).operations(case.batch), ACCELERATORS["h100"])
    measured = statistics.median(DOCUMENTED[number]["ms"])
    assert 0.35 < 1e3 * found.total / measured < 1.35
    kind = f"{case.batch} x {case.frames} | {case.optimizer}, {case.precision}"
    row = f"| {case.title} | {kind} | {measured:.3g} |"
    assert f"{row} {1e3 * found.total:.3g} |" in (ROOT / "docs" / "plan.md").read_text()


SCALED = [
    ("the report's CVAE", dict(recipe="report", batch=10, frames=16)),
    ("multiscale", dict(recipe="recommended", batch=128, frames=2, optimizer="muon")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("title", "fields"), SCALED)
def test_the_page_has_the_estimates_for_many_chips(title, fields):
    from benchmarks.accelerator_cases import Case, config_of

    case = Case(title, **fields, precision="bfloat16")
    config = config_of(case, tiny=False)
    with formulated_for("tpu"):
        step = step_of(config, case.size)
        operations = step.operations(case.batch)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(step.state.params))
    # In float32 are the CVAE's last layers (0.02 %), and of the other model Muon's products (2.5 %).
    bound = 0.001 if case.optimizer == "adam" else 0.03
    assert operations.flops["float32"] < bound * operations.total_flops
    page = (ROOT / "docs" / "performance.md").read_text()
    for chip, name in (("v5e", "TPU v5e"), ("h100", "H100")):
        totals = [
            estimate(operations, ACCELERATORS[chip], None, size, count).total for count in (1, 8, 64, 512)
        ]
        times = " | ".join(f"{1e3 * total:.3g}" for total in totals)
        rate = 512 * case.batch * (case.frames - 1) / totals[-1]
        row = f"| {title} | {name} | {case.batch} | {times} | {float(f'{rate:.3g}'):,.0f} |"
        assert row in page, row


def test_an_estimate_takes_the_larger_of_arithmetic_and_traffic():
    chip = Chip("a chip", "gpu", 1e9, {"float32": 100.0, "bfloat16": 1000.0}, 10.0, 0.5, 0.25, "")
    found = estimate(Operations({"float32": 200, "bfloat16": 500}, bytes=20, number=4), chip)
    assert (found.compute, found.traffic, found.launches) == (4 + 1, 2, 1) and found.total == 6
    assert estimate(Operations({"float32": 1}, bytes=20), chip).total == 2
    linked = dataclasses.replace(chip, link=10.0, bandwidth=None)
    summed = estimate(Operations(), linked, gradient_bytes=80, devices=4)  # 2 x 3/4 of 80 bytes, 4 hops
    assert summed.total == summed.communication == pytest.approx(12 + 4 * 2e-6)
    torus = sum_seconds(80, dataclasses.replace(linked, backend="tpu"), 16)
    assert torus == pytest.approx(2 * 80 * 15 / 16 / 10 + 12 * 2e-6)
    between_machines = sum_seconds(80e9, dataclasses.replace(linked, link=450e9), 16)
    assert between_machines == pytest.approx(2 * 80 * 15 / 16 / 50, rel=1e-3)
    assert sum_seconds(80, linked, 1) == sum_seconds(80, chip, 4) == 0
    assert estimate(Operations({"float32": 200}), chip, utilisation=1.0).total == 2


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_memory_is_a_line_in_the_batch(backend, small_model):
    with formulated_for(backend):
        step = step_of(small_config())
        total = {clips: memory_of(step.lower(clips)).total for clips in (4, 8, 20)}
    by_line = total[4] + (total[8] - total[4]) / 4 * 16
    assert by_line == pytest.approx(total[20], rel=0.06)
    assert largest_batch(total, total[20]) == 20


def test_the_state_counts_once(small_model):
    memory = memory_of(step_of(small_config()).lower(4))
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(step_of(small_config()).state))
    assert memory.aliased == pytest.approx(state, rel=0.01)
    assert memory.total == pytest.approx(memory.arguments + memory.temporary, rel=0.01)


def test_the_largest_batch():
    assert largest_batch({4: 40, 8: 60}, 100) == 16
    assert largest_batch({2: 39, 4: 40, 8: 60}, 104.9) == 16
    assert largest_batch({4: 40, 8: 60}, 24) == 0 and largest_batch({4: 40, 8: 60}, 10) == 0


# Programs for accelerators are the same for all of them.
SLOW = [pytest.param(chip, marks=pytest.mark.slow) for chip in CHIPS if chip not in ("h100", "cpu")]


@pytest.mark.parametrize("chip", ["h100", "cpu", *SLOW])
def test_a_plan_for_every_chip(chip, small_model, data):
    config = small_config(batch_size=6)
    found = make_plan(config, chip, devices=2, load=True)
    size = data["train"][0].frames.shape[1:3]
    parts = Components.build(config)
    state = TrainState.create(init_variables(parts.model, 0, size), parts.optimizer)
    assert found.parameters == sum(x.size for x in jax.tree.leaves(state.params))
    assert found.state_bytes == sum(x.nbytes for x in jax.tree.leaves(state))
    three, six, many = sorted(found.by_batch)
    assert found.clips == three == 3 and six == 6 and many > 100
    assert found.memory.total == found.by_batch[three] < found.by_batch[six]
    assert found.steps_per_epoch == 1 and found.run_seconds == config.num_epochs * found.time.total
    assert 1 <= found.largest * found.bytes_per_clip <= 0.75 * found.chip.memory
    text = " ".join(to_text(found).split())
    assert all(
        part in text for part in (found.chip.title, f"{found.parameters:,}", in_bytes(found.memory.total))
    )
    assert f"{2 * found.largest:,} in all" in text and in_time(found.time.total) in text
    assert ("expect another number there" in text) == (chip != "cpu")
    values = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert values["largest_batch"] == 2 * found.largest and values["memory"]["total"] == found.memory.total
    if chip != "cpu":
        roomless = dataclasses.replace(found, largest=0, steps_per_epoch=None)
        text = " ".join(to_text(roomless).split())
        assert "not even one clip fits" in text and "--load_data" in text


def test_a_program_for_an_accelerator_is_formulated_for_one():
    assert ops.resolve_formulation("auto") == "cpu"
    with formulated_for("tpu"):
        assert ops.resolve_formulation("auto") == "plain"
        assert Components.build(small_config()).rollout.fold_time
    assert ops.resolve_formulation("auto") == "cpu"
    assert not Components.build(small_config()).rollout.fold_time


def test_decisions_per_clip_are_part_of_the_batch():
    config = small_config()
    config.teacher_forcing.draw = "example_step"
    batch, controls = step_of(config).batch(6)
    assert batch["forced"].shape == (1, 6, 3) and batch["frames"].shape == (1, 6, 4, *SIZE, 3)
    assert set(controls) == {"seed", "beta", "learning_rate"}


def test_shapes_are_known_without_the_data(monkeypatch):
    config = defaults.get_config()
    recordings = load_data(config.data, 1)["train"]
    assert known_shapes(config.data) == (recordings[0].frames.shape[1:3], recordings[0].label_size)
    config.data.name = "kth"
    assert known_shapes(config.data) == (kth.FRAME_SIZE, 0)
    config.data.kth.labels = "action"
    assert known_shapes(config.data) == (kth.FRAME_SIZE, kth.make_labels("boxing", 1).shape[1])
    config.data.name = "real_clips"
    monkeypatch.setattr(real_clips, "DATA_SET", dataclasses.replace(real_clips.DATA_SET, image_labels=False))
    assert known_shapes(config.data) is None


def run_plan(environment, *flags):
    command = [sys.executable, "-m", "cvae_jax.plan", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


def test_the_command_prints_and_writes_the_plan(data, small_model, tmp_path, capsys):
    settings = dict(chip="a100", devices=2, utilisation=0.5, margin=0.1, load=False)
    plan._plan(small_config(), settings, str(tmp_path / "plan.json"))
    values, said = json.loads((tmp_path / "plan.json").read_text()), capsys.readouterr()
    text = " ".join(said.out.split())
    assert (values["clips"], values["utilisation"], values["margin"]) == (2, 0.5, 0.1)
    assert values["budget"] == pytest.approx(0.9 * 80e9) and values["epoch_seconds"] is None
    assert values["chip"]["title"] in text and "at 50% of 19.5 TFLOP/s in float32" in text
    assert "compiling the training step" in said.err


@pytest.mark.slow
def test_the_script(environment, tmp_path):
    file = tmp_path / "plan.json"
    done = run_plan(
        environment, "--config=configs/none.py", *TINY, "--chip=a100", "--devices=2", f"--json={file}"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values = json.loads(file.read_text())
    assert values["clips"] == 2 and values["chip"]["title"] in done.stdout
    assert f"{values['parameters']:,}" in done.stdout and "compiling the training step" in done.stderr


MISTAKES = {
    "no such chip": (["--chip=b200"], "--chip=b200"),
    "no device": (["--devices=0"], "--devices=0"),
    "utilisation": (["--utilisation=1.5"], "--utilisation is 1.5"),
    "margin": (["--margin=1"], "--margin is 1"),
    "value": (["--config.batch_size=0"], "config.batch_size"),
    "json": (["--json=/proc/nowhere/plan.json"], "/proc/nowhere"),
    "data": (["--config.data.name=frame_folder", "--load_data"], "config.data.dir"),
}


@pytest.mark.parametrize("flags, named", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_ends_with_one_sentence_and_status_2(environment, flags, named):
    done = run_plan(environment, *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    _, *sentences = [line for line in done.stderr.splitlines() if line.strip()]  # the first: CPU settings
    assert len(sentences) == 1 and named in sentences[0], done.stderr


def test_help_shows_the_flags(environment):
    done = run_plan(environment, "--help")
    assert all(f"--{flag}" in done.stdout for flag in ("chip", "devices", "utilisation", "json", "config"))
    assert "python -m cvae_jax.plan" in done.stdout


def test_training_that_runs_out_of_memory_ends_with_a_sentence(
    data, small_model, tmp_path, monkeypatch, capsys
):
    def out_of_memory(*_):
        jnp.zeros((1 << 50,))  # raises what a device does whose memory is full

    config = small_config()
    monkeypatch.setattr(Devices, "map_update", lambda *_: out_of_memory)
    with pytest.raises(SystemExit) as end:
        cli.guarded(lambda: open_run(config, tmp_path / "run").finish())
    assert end.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "config.batch_size" in sentence and cli.PLAN in sentence
    with pytest.raises(RuntimeError, match="something else"):
        cli.guarded(lambda: (_ for _ in ()).throw(RuntimeError("something else")))
