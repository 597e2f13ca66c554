"""The training run: epochs of compiled steps, validation, log, checkpoints, exact resume."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from configs import default
from cvae_jax import config as config_files
from cvae_jax.checkpoint import FOLDER, Checkpoints, Progress, checkpoint_metrics
from cvae_jax.config import Components
from cvae_jax.data import datasets
from cvae_jax.data.clips import data_hash, span
from cvae_jax.data.loader import TrainLoader, pad_to_devices
from cvae_jax.errors import NonFiniteError, UserError
from cvae_jax.files import replacing
from cvae_jax.gradients import clip_gradients
from cvae_jax.models.cvae import init_variables
from cvae_jax.parallel import Devices, prefetch, total
from cvae_jax.progress import Announcement, epoch_bar, resumed, tell
from cvae_jax.rollout import Clips, address, clip_noise
from cvae_jax.train_state import TrainState
from cvae_jax.validation import SUMMARY_FIELDS, Validator, summary
from cvae_jax.writers import Writers

METRICS_FILE = "metrics.jsonl"
DATA_FILE = "train_data.blake2b"
FRAMES_FILE = "frame_size.json"  # (H, W) that the run was trained on, whatever data its config names later
TRAINING_STREAM = jnp.uint32(0)
DEFAULT_CACHE = Path(__file__).parent.parent / "data"


def make_train_step(parts: Components) -> Callable:
    """Return the device function (state, batch, controls) -> (state, metrics).

    batch: frames and labels uint8 (b, T, H, W, 3), mask float32 (b,), index int32 (b,), and for decisions
    per example forced bool (b, T-1). controls: seed uint32, beta and learning_rate float32, and otherwise
    forced bool (T-1,). metrics: loss, recon, kl, grad_norm, and finite. Where loss or gradients are not
    finite the state comes back as it was.
    """

    def train_step(state: TrainState, batch: dict, controls: dict) -> tuple[TrainState, dict]:
        clips = Clips(batch["frames"], batch["labels"], batch["mask"])
        keys = address(controls["seed"], TRAINING_STREAM, state.step.astype(jnp.uint32), batch["index"])
        noise = clip_noise(keys, (*clips.frames.shape[2:4], parts.model.latent_channels))
        forced = batch["forced"].T if "forced" in batch else controls["forced"]
        gradients, metrics, batch_stats = clip_gradients(
            parts.model,
            parts.objective,
            parts.feedback,
            state.variables,
            clips,
            noise,
            forced,
            controls["beta"],
            total(jnp.sum(clips.mask)),
        )
        gradients, metrics = total((gradients, metrics))
        metrics["grad_norm"] = jnp.linalg.norm(ravel_pytree(gradients)[0])
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        updated = state.update(parts.optimizer, gradients, batch_stats, controls["learning_rate"])
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return state, metrics | {"finite": finite}

    return train_step


class Programs:
    """The mapped functions of runs, one for each components they are traced from and devices, and their data.

    A mapped function is compiled when it is first called: runs of the same shape that share this object
    compile nothing twice. (A process that kept the programs of dozens of runs would also run out of memory
    maps.)
    """

    def __init__(self) -> None:
        self._made: dict[tuple, Any] = {}
        self._loading = threading.Lock()

    def data(self, config: ConfigDict) -> dict[str, list[datasets.Recording]]:
        """Return `load_data`; runs of the same data share one copy in memory."""
        with self._loading:
            return self._once(
                ("data", config.data.to_json(sort_keys=True), config.n_past), lambda: load_data(config)
            )

    def train_step(self, parts: Components, devices: Devices) -> Callable:
        """Return the training step of `make_train_step`, mapped over the devices."""
        return self._once(
            ("train", parts.traced, devices.devices),
            lambda: devices.map_update(make_train_step(parts)),
        )

    def validator(
        self, config: ConfigDict, parts: Components, devices: Devices, with_ssim: bool
    ) -> Validator:
        """Return the validator of a run; see `Validator`."""
        size, chunk = config.eval.batch_size, config.eval.chunk
        return self._once(
            ("validator", parts.traced, devices.devices, size, chunk, with_ssim),
            lambda: Validator(parts, devices, size, chunk, with_ssim),
        )

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def load_data(config: ConfigDict) -> dict[str, list[datasets.Recording]]:
    """Return the config's recordings by split, preparing them on first use."""
    data = datasets.load(
        config.data.name,
        data_dir=config.data.dir,
        cache_dir=str(config.data.cache or DEFAULT_CACHE),
        frame_size=config.data.frame_size,
        options={n: config.data[n].to_dict() for n in datasets.LOADERS if n in config.data},
    )
    for split, recordings in data.items():
        for recording in recordings if split != "train" else ():
            if len(recording.frames) <= config.n_past:
                raise UserError(
                    f"The {split} recording {recording.name} of {config.data.name} has "
                    f"{len(recording.frames)} frames, of which config.n_past={config.n_past} are given: "
                    "there is nothing to predict; lower config.n_past or bring longer recordings."
                )
    return data


def train(config: ConfigDict, workdir: Path, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """Train as the config says, writing to `workdir`, or go on with the run that is there.

    Returns the final state. Raises UserError before anything expensive for what the user can mend, and
    NonFiniteError when a loss or gradient is not finite; the checkpoints stay as they were.
    """
    return Run(config, workdir, devices).finish()


class Run:
    """One training run in its workdir."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        devices: Sequence[jax.Device] | None = None,
        programs: Programs | None = None,
    ):
        self.config, self.workdir = config, workdir
        programs = programs or Programs()
        self.parts = Components.build(config)
        trained = any((workdir / FOLDER).glob("[0-9]*"))  # else there is nothing to protect
        if trained and (workdir / config_files.FILE).exists():
            stored = config_files.load(workdir, default.get_config())
            config_files.refuse_other_training(config, stored, workdir)
        data = programs.data(config)
        self.validation = data["validation"]
        data_now = data_hash(data["train"])
        refuse_other_data(workdir / DATA_FILE, data_now, trained)
        self.loader = TrainLoader(
            data["train"],
            clip_length=config.clip_length,
            stride=config.data.stride,
            batch_size=config.batch_size,
            seed=config.seed,
            shuffle=config.data.shuffle,
            frame_step=config.data.frame_step,
            clips_per_epoch=config.data.clips_per_epoch,
        )
        if self.loader.too_short:
            tell(
                "Recordings left out of training, too short for a clip of "
                f"{span(config.clip_length, config.data.frame_step)} frames: "
                f"{', '.join(self.loader.too_short)}."
            )
        self.frame_size = data["train"][0].frames.shape[1:3]
        self.label_size = data["train"][0].label_size
        self.devices = Devices(devices)
        self.train_step = programs.train_step(self.parts, self.devices)
        self._compiled = False
        self.validator = programs.validator(config, self.parts, self.devices, with_ssim=False)
        self._schedule_values(0, 0)  # refuses schedules that do not fit the run's length
        config_files.save(config, workdir)
        with replacing(workdir / DATA_FILE) as partial:
            partial.write_text(data_now + "\n")
        with replacing(workdir / FRAMES_FILE) as partial:
            partial.write_text(json.dumps(list(self.frame_size)) + "\n")
        self.checkpoints = Checkpoints(
            workdir,
            keep=config.checkpoint.keep,
            period=config.checkpoint.save_every * self.loader.num_batches,
        )
        self.writers = Writers(config, workdir)

    def finish(self) -> TrainState:
        """Run every epoch that is not done yet."""
        state, progress = self._start()
        try:
            for epoch in range(progress.epoch, self.config.num_epochs):
                state = self._epoch(state, epoch, progress)
                progress = Progress(epoch + 1)
        finally:
            self.writers.close()
            self.checkpoints.close()
        return state

    def _start(self) -> tuple[TrainState, Progress]:
        variables = init_variables(self.parts.model, self.config.seed, self.frame_size, self.label_size)
        state = TrainState.create(variables, self.parts.optimizer)
        progress = Progress()
        if self.checkpoints.steps:
            state, progress = self.checkpoints.restore(state, self.checkpoints.find("last"))
            resumed(progress.epoch, progress.batch)
        keep_rows(self.workdir / METRICS_FILE, progress.epoch)
        return self.devices.place(state), progress

    def _epoch(self, state: TrainState, epoch: int, progress: Progress) -> TrainState:
        started = time.monotonic()
        sums = dict(progress.sums)
        bar = epoch_bar(epoch, self.config.num_epochs, self.loader.num_batches, progress.batch)
        pending: tuple[int, dict] | None = None
        controls: dict[str, float] = {}
        last_save = asked = started
        waited = 0.0  # for batches

        def collect() -> None:
            """Fetch the metrics of the last step but the one that was just sent: the device is never idle."""
            nonlocal pending
            if pending is None:
                return
            values = {name: float(value) for name, value in jax.device_get(pending[1]).items()}
            refuse_non_finite(values, pending[0], epoch, self.checkpoints)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.set_postfix(
                loss=f"{values['loss']:.4g}",
                beta=f"{controls['beta']:.3g}",
                ratio=f"{controls['ratio']:.2f}",
                refresh=False,
            )
            pending = None

        with bar:
            for number, batch, traced, controls in prefetch(self._steps(epoch, progress.batch)):
                waited += time.monotonic() - asked
                state, metrics = self._step(bar, state, batch, traced)
                collect()
                pending = (number, metrics)
                for name in ("beta", "forced_share"):
                    sums[name] = sums.get(name, 0.0) + controls[name]
                bar.update()
                due = self.config.checkpoint.minutes and (
                    time.monotonic() - last_save > 60 * self.config.checkpoint.minutes
                )
                if due and number + 1 < self.loader.num_batches:
                    collect()
                    self._save(epoch, number + 1, state, sums)
                    last_save = time.monotonic()
                asked = time.monotonic()
            collect()
            trained = time.monotonic()
            row = self._row(epoch, sums, controls)
            row |= self._validate(state, epoch, controls["beta"], bar)
            row["train_seconds"] = round(trained - started, 3)
            row["input_seconds"] = round(waited, 3)
            row["validation_seconds"] = round(time.monotonic() - trained, 3)
        append_row(self.workdir / METRICS_FILE, row)
        self.writers.epoch(row)
        steps_done = (epoch + 1) * self.loader.num_batches
        last = epoch + 1 == self.config.num_epochs
        if last or (epoch + 1) % self.config.checkpoint.every == 0:
            self.checkpoints.save(steps_done, state, Progress(epoch + 1), checkpoint_metrics(row))
        if last:
            self.checkpoints.wait()
        return state

    def _step(self, bar: Any, *arguments: Any) -> tuple[TrainState, dict]:
        """Dispatch the training step; the run's first one compiles, and is waited for in sight."""
        if self._compiled:
            return self.train_step(*arguments)
        with Announcement(bar, "compiling the training step"):
            self._compiled = True
            return jax.block_until_ready(self.train_step(*arguments))

    def _save(self, epoch: int, batch: int, state: TrainState, sums: dict[str, float]) -> None:
        step = epoch * self.loader.num_batches + batch
        self.checkpoints.save(step, state, Progress(epoch, batch, dict(sums)), None)

    def _schedule_values(self, epoch: int, number: int) -> dict[str, float]:
        place = dict(
            epoch=epoch,
            step=epoch * self.loader.num_batches + number,
            num_epochs=self.config.num_epochs,
            steps_per_epoch=self.loader.num_batches,
        )
        return {
            "beta": self.parts.beta.value(**place),
            "learning_rate": self.parts.learning_rate.value(**place),
            "ratio": self.parts.forcing.ratio(epoch),
        }

    def _steps(self, epoch: int, start: int) -> Iterator[tuple[int, dict, dict, dict]]:
        """Yield (number, device batch, traced controls, logged controls) of an epoch's steps."""
        for number, batch in enumerate(self.loader.batches(epoch, start), start):
            values = self._schedule_values(epoch, number)
            forced = self.parts.forcing.decisions(
                seed=self.config.seed,
                epoch=epoch,
                batch=number,
                num_steps=self.config.clip_length - 1,
                batch_size=self.config.batch_size,
            )
            logged = values | {"forced_share": float(np.mean(forced))}
            given = np.arange(1, self.config.clip_length) <= self.config.n_past
            forced = forced | (given if forced.ndim == 1 else given[:, None])
            traced = {
                "seed": np.uint32(self.config.seed),
                "beta": np.float32(values["beta"]),
                "learning_rate": np.float32(values["learning_rate"]),
            }
            if forced.ndim == 2:
                batch["forced"] = forced.T
            else:
                traced["forced"] = forced
            split = self.devices.split(pad_to_devices(batch, len(self.devices)))
            yield number, split, traced, logged

    def _row(self, epoch: int, sums: dict[str, float], controls: dict[str, float]) -> dict:
        batches = self.loader.num_batches
        mean = {name: value / batches for name, value in sums.items()}
        return {
            "epoch": epoch,
            "step": (epoch + 1) * batches,
            "train_loss": mean["loss"],
            "recon": mean["recon"],
            "kl": mean["kl"],
            "grad_norm": mean["grad_norm"],
            "beta": mean["beta"],
            "teacher_forcing_ratio": controls["ratio"],
            "teacher_forced": mean["forced_share"],
            "learning_rate": controls["learning_rate"],
        }

    def _validate(self, state: TrainState, epoch: int, beta: float, bar: Any) -> dict:
        last = epoch + 1 == self.config.num_epochs
        if (epoch + 1) % self.config.eval.every and not last:
            return dict.fromkeys(SUMMARY_FIELDS)
        variables = state.evaluation_variables
        scored = {}
        for mode in ("prior", "posterior"):
            with Announcement(bar, f"validating ({mode})"):
                scored[mode] = list(
                    self.validator.run(variables, self.validation, mode, self.config.eval.seed)
                )
        fields = summary(scored["prior"], scored["posterior"], beta)
        bar.set_postfix(
            prior=f"{fields['val_psnr_prior']:.2f} dB", posterior=f"{fields['val_psnr_posterior']:.2f} dB"
        )
        self.writers.validation((epoch + 1) * self.loader.num_batches, scored)
        return fields


def refuse_non_finite(values: dict[str, float], number: int, epoch: int, checkpoints: Checkpoints) -> None:
    """Raise NonFiniteError if a step's loss or gradient was not finite, naming the way on."""
    if values["finite"]:
        return
    checkpoints.wait()
    kept = checkpoints.steps
    last = f"the last checkpoint is step {kept[-1]}" if kept else "there is no checkpoint yet"
    raise NonFiniteError(
        f"Training stopped at epoch {epoch}, batch {number}: the loss is {values['loss']} and the "
        f"gradient's norm {values['grad_norm']}; {last} in {checkpoints.folder}. Lower "
        "config.learning_rate.peak, or give beta a floor (config.beta.floor), and start anew."
    )


def refuse_other_data(path: Path, found: str, trained: bool) -> None:
    """Raise UserError if a run that is to go on was trained on other data (a moved folder is the same)."""
    if trained and path.exists() and path.read_text().strip() != found:
        raise UserError(
            f"The run in {path.parent} was trained on other data than the config gives now: give the same "
            "data to go on with it, or another --workdir to start anew."
        )


def keep_rows(path: Path, epochs: int) -> None:
    """Drop the rows of epochs that will be run again, and a row cut short by a kill."""
    if not path.exists():
        return
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row["epoch"] < epochs:
            rows.append(line + "\n")
    with replacing(path) as partial:
        partial.write_text("".join(rows))


def finite(value: Any) -> Any:
    """Return a row with null where a number is infinite or not a number, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_row(path: Path, row: dict) -> None:
    """Append one JSON object and wait until it is on disk (the checkpoint that follows relies on it)."""
    with path.open("a") as file:
        file.write(json.dumps(finite(row), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
