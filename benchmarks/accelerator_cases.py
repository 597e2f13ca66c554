"""What `benchmarks/accelerator.py` times: each function returns numbers for the report, or a row of it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gzip
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import TINY_CVAE, milliseconds
from benchmarks.worker import clips
from cvae_jax.config import Components
from cvae_jax.models.interface import init_variables
from cvae_jax.rollout.chunks import PRIOR, ChunkedRollout, Prompt
from cvae_jax.runtime.chips import find_chip, seconds_at_peak
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.workdir import read_metrics
from cvae_jax.train import initial_state, make_controls, make_step_options, model_operations, open_run
from cvae_jax.training.step import make_train_step
from cvae_jax.training.throughput import device_memory

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "multiscale": {"widths": (16, 16)},
    "cvae": TINY_CVAE,
    "svg": {"width": 4, "code_size": 8, "rnn_size": 8, "latents": 4},
}
AROUND = ("while", "conditional", "call")  # operations that consist of others
RECIPES = ("recommended", "svg_lp_mmnist")  # modules of configs/; report: the defaults


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step: what it is called, its config and batch."""

    title: str
    recipe: str  # of RECIPES, or report
    batch: int
    frames: int
    precision: str = "float32"
    optimizer: str = "adam"
    teacher_forced: bool = True
    widths: tuple[int, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return (64, 64) if self.recipe.startswith("svg") else (32, 64)


def cases() -> list[Case]:
    """Return the timed steps, the most telling first: the last ones are left out if time runs out."""
    report = functools.partial(Case, recipe="report", frames=16)
    small = functools.partial(Case, "multiscale", "recommended", frames=2, optimizer="muon")
    svg = functools.partial(Case, recipe="svg_lp_mmnist", frames=15)
    forced, free = "teacher-forced", "autoregressive"
    cvae = "the report's CVAE, {}"
    return [
        report(cvae.format(forced), batch=10),
        report(cvae.format(forced), batch=10, precision="bfloat16"),
        small(batch=8),
        small(batch=128, precision="bfloat16"),
        report(cvae.format(free), batch=10, precision="bfloat16", teacher_forced=False),
        svg(f"SVG-LP, {forced}", batch=100, precision="bfloat16"),
        report(cvae.format(forced), batch=64, precision="bfloat16"),
        small(batch=1024, precision="bfloat16"),
        report(cvae.format(free), batch=10, teacher_forced=False),
        svg(f"SVG-LP, {forced}", batch=100),
        svg(f"SVG-LP, {free}", batch=100, precision="bfloat16", teacher_forced=False),
        small(batch=128),
        dataclasses.replace(small(batch=8), optimizer="adam"),
        dataclasses.replace(
            small(batch=32, precision="bfloat16"),
            title="multiscale, twice as wide",
            widths=(32, 96, 144, 192),
        ),
    ]


def one_of_each() -> list[Case]:
    """Return the first case of each model and kind of clips, for a trial."""
    found: dict[tuple[str, bool], Case] = {}
    for case in cases():
        found.setdefault((case.recipe, case.teacher_forced), case)
    return list(found.values())


def config_of(case: Case, tiny: bool) -> Any:
    """Return the config of a case."""
    import importlib

    from cvae_jax import defaults

    recipe = importlib.import_module(f"configs.{case.recipe}") if case.recipe in RECIPES else defaults
    config = recipe.get_config()
    config.precision, config.optimizer.kind = case.precision, case.optimizer
    config.clip_length, config.batch_size = case.frames, case.batch
    config.n_past = min(config.n_past, case.frames - 1)
    config.teacher_forcing.update(kind="constant", initial=float(case.teacher_forced), draw="epoch")
    if case.widths:
        config.model.multiscale.widths = case.widths
    if tiny:
        config.batch_size, config.clip_length = 2, min(case.frames, 3)
        config.n_past = min(config.n_past, config.clip_length - 1)
        config.model[config.model.kind].update(TINY[config.model.kind])
    return config


class TrainingStep:
    """The compiled step of a case, with its state and a batch on the device."""

    def __init__(self, devices: Devices, case: Case, tiny: bool):
        self._devices, self._case, self._tiny = devices, case, tiny
        self._config = config_of(case, tiny)
        parts = Components.build(self._config)
        controls = make_controls(self._config, parts, steps_per_epoch=10)
        options = make_step_options(self._config, parts, controls)
        self._step = devices.map_update(make_train_step(*parts.compiled, **options))
        self._state = devices.place(initial_state(parts, 0, case.size, None))
        video, labels = clips(self._config.batch_size, self._config.clip_length, case.size)
        batch = {"frames": video, "labels": labels, "mask": np.ones(len(video), np.float32)}
        arrays = devices.split(batch | {"index": np.arange(len(video), dtype=np.int32)})
        self._inputs = arrays, controls.at(0, 0).traced
        counted = model_operations(parts, options, devices, self._state, *self._inputs)
        self._operations = counted[0 if case.teacher_forced else 1]

    def seconds(self, repeats: int) -> float:
        """Return the seconds that so many steps take."""
        started = time.perf_counter()
        for _ in range(repeats):
            self._state, metrics = self._step(self._state, *self._inputs)
        float(metrics["loss"])
        return time.perf_counter() - started

    def measure(self) -> dict:
        """Return the numbers of the step.

        ms: of a step in each round, ascending. first_seconds: of the first step, which is compiled.
        frames_per_second: predicted frames. tflop: of the model's operations per step. mfu: their share of
        what the device could do at its peak; None where that is not known. device_memory_bytes: the most
        held so far.
        """
        first = self.seconds(1)
        self.seconds(2)
        times = milliseconds(self.seconds, self._tiny)
        median = statistics.median(times) / 1e3
        chip = find_chip(self._devices.devices[0].device_kind)
        return {
            "ms": times,
            "first_seconds": first,
            "frames_per_second": self._config.batch_size * (self._config.clip_length - 1) / median,
            "tflop": self._operations.total_flops / 1e12,
            "mfu": None if chip is None else seconds_at_peak(self._operations, chip) / median,
            "device_memory_bytes": device_memory(self._devices.devices),
        }


def ceilings(tiny: bool) -> dict[str, float]:
    """Return the best rates of a matrix product in both precisions (FLOP/s), and of a copy (bytes/s)."""
    size, length = (256, 2**20) if tiny else (8192, 2**28)
    multiply = jax.jit(lambda x: jax.lax.dot(x, x, precision="highest"))
    half = jax.jit(lambda x: jax.lax.dot(x, x, preferred_element_type=jnp.float32).astype(x.dtype))
    copy = jax.jit(lambda x: x + 1.0)
    ones = functools.partial(jnp.ones, (size, size))
    return {
        "float32_flops_per_second": 2 * size**3 / _best(multiply, ones(jnp.float32)),
        "bfloat16_flops_per_second": 2 * size**3 / _best(half, ones(jnp.bfloat16)),
        "copied_bytes_per_second": 2 * 4 * length / _best(copy, jnp.ones(length, jnp.float32)),
    }


def _best(function: Callable, argument: jax.Array, rounds: int = 5, repeats: int = 5) -> float:
    """Return the seconds of a call in the best round."""
    jax.block_until_ready(function(argument))
    best = np.inf
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(repeats):
            result = function(argument)
        jax.block_until_ready(result)
        best = min(best, (time.perf_counter() - started) / repeats)
    return best


def rollout(devices: Devices, recipe: str, number: int, frames: int, tiny: bool) -> dict:
    """Return the seconds of prior rollouts of clips: of the first one, which compiles, and of the next."""
    case = Case("", recipe, number, frames)
    parts = Components.build(config_of(case, tiny))
    variables = init_variables(parts.model, 0, case.size)
    video, labels = clips(1, frames, case.size)
    prompts = [Prompt("", video[0, : parts.n_past], labels[0], index) for index in range(number)]
    program = ChunkedRollout(parts.model, devices, PRIOR, n_past=parts.n_past, batch_size=number, chunk=50)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        for _ in program.run(variables, prompts, [(index, 0) for index in range(number)], seed=0):
            pass
        seconds.append(time.perf_counter() - started)
    predicted = number * (frames - parts.n_past)
    own = {"recipe": recipe, "clips": number, "frames": frames, "first_seconds": seconds[0]}
    return own | {"seconds": seconds[1], "frames_per_second": predicted / seconds[1]}


def torch_steps(seconds: float, tiny: bool) -> list[dict]:
    """Return what `benchmarks.accelerator_torch` prints within so many seconds.

    Raises RuntimeError with its last line where it prints nothing: PyTorch is not installed, or finds no GPU.
    """
    command = [sys.executable, "-m", "benchmarks.accelerator_torch", *["--tiny"][: int(tiny)]]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=ROOT, stdout=out, stderr=err, timeout=seconds)
        out.seek(0)
        found = [json.loads(line) for line in out.read().splitlines()]
        err.seek(0)
        if not found:
            raise RuntimeError((err.read().strip().splitlines() or ["it took too long"])[-1])
    return found


def profile(run: Callable[[], object], most: int = 10) -> list[dict]:
    """Return what the device spent most time on while `run` ran: {"name", "milliseconds", "share"}."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return summary(events, most)


def summary(events: list[dict], most: int) -> list[dict]:
    """Return the operations that took most time in a trace, without their numbers, and their shares of all.

    Those are the events that name an operation of XLA, on a device where there is one, otherwise on the CPU.
    """
    named = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    on_device = {pid for pid, name in named.items() if "/device:" in name}
    total: collections.Counter[str] = collections.Counter()
    for event in events:
        operation = re.sub(r"[.\d]+$", "", event.get("args", {}).get("hlo_op", ""))
        if operation and operation not in AROUND and (not on_device or event["pid"] in on_device):
            total[operation] += event.get("dur", 0.0) / 1e3
    everything = sum(total.values())
    return [
        {"name": name, "milliseconds": spent, "share": spent / everything}
        for name, spent in total.most_common(most)
    ]


def train(rate: float, seconds: float, devices: Devices, tiny: bool) -> dict:
    """Train the recommended model on `dancer` for about so many seconds of steps, and return its score.

    rate: the predicted frames per second of its training step, by which the epochs are sized.
    """
    from configs import recommended

    config = recommended.get_config()
    config.data.name, config.num_epochs, config.eval.every = "dancer", 5, 5
    config.data.clips_per_epoch = max(config.batch_size, int(rate * seconds / config.num_epochs))
    config.learning_rate.warmup_epochs = 0
    config.eval.lpips, config.log.images = False, False
    if tiny:
        config.data.clips_per_epoch = config.batch_size
        config.data.dancer.update(train_frames=64, validation_frames=12, test_sequences=0)
        config.model.multiscale.update(TINY["multiscale"])
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        open_run(config, workdir, list(devices.devices)).finish()
        rows = read_metrics(workdir)
    return {
        "clips": config.num_epochs * config.data.clips_per_epoch,
        "train_seconds": sum(row["train_seconds"] - row["compile_seconds"] for row in rows),
        "compile_seconds": sum(row["compile_seconds"] for row in rows),
        "frames_per_second": rows[-1]["frames_per_second"],
        "val_psnr_prior": rows[-1]["val_psnr_prior"],
        "val_psnr_posterior": rows[-1]["val_psnr_posterior"],
    }
