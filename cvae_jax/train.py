"""From a config to a training run in its workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.config import Components
from cvae_jax.data.clips import Recording, data_hash, span
from cvae_jax.data.load import load_data
from cvae_jax.data.loader import TrainLoader
from cvae_jax.evaluation.evaluate import shared_scorer
from cvae_jax.evaluation.measures import choose
from cvae_jax.evaluation.validation import Validation
from cvae_jax.models.interface import init_variables, variable_shapes
from cvae_jax.runtime import processes
from cvae_jax.runtime.cache import Cache
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import exclusive, replacing
from cvae_jax.runtime.operations import Operations, count_operations
from cvae_jax.runtime.progress import tell
from cvae_jax.runtime.workdir import DATA_FILE, FRAMES_FILE, METRICS_FILE, read_metrics
from cvae_jax.training.checkpoint import Checkpoints
from cvae_jax.training.checkpoint_folder import has_checkpoint, refuse_unknown_step
from cvae_jax.training.controls import Controls
from cvae_jax.training.gradients import forms
from cvae_jax.training.group import InTurn, Member, make_group_step
from cvae_jax.training.logging import Writers, require_wandb, start_wandb
from cvae_jax.training.loop import Cadence, Run
from cvae_jax.training.nonfinite import NonFinite
from cvae_jax.training.profile import Profile, check_steps
from cvae_jax.training.resume import refuse_other_data
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step
from cvae_jax.training.throughput import Throughput


def train(
    config: ConfigDict,
    workdir: Path,
    devices: Sequence[jax.Device] | None = None,
    extend: bool = False,
    resume_from: int | None = None,
) -> TrainState:
    """Train as the config says, writing to `workdir`, or resume the run that is there.

    extend: whether a resumed run may have more epochs than it was started with, which stretches its
    schedules. resume_from: see `cvae_jax.training.resume.resume`.

    Returns the final state. Raises UserError before anything expensive for mistakes a user can fix, and
    NonFiniteError when a loss or gradient is not finite; the checkpoints stay as they were.
    """
    return open_run(config, workdir, devices, extend=extend, resume_from=resume_from).finish()


def open_run(
    config: ConfigDict,
    workdir: Path,
    devices: Sequence[jax.Device] | None = None,
    cache: Cache | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    extend: bool = False,
    resume_from: int | None = None,
    member: Member | None = None,
) -> Run:
    """Check a config against its workdir, load its data and open its checkpoints and logs; see `train`.

    cache: shares data and compiled programs with other runs. should_stop: see `Run`. extend, resume_from:
    see `train`. member: the run's place among others that it trains with.
    """
    with contextlib.ExitStack() as stack:  # closes what is open if what follows fails
        run = _open(stack, config, workdir, devices, cache, should_stop, extend, resume_from, member)
        run.resources = stack.pop_all()
    return run


def _open(
    stack: contextlib.ExitStack,
    config: ConfigDict,
    workdir: Path,
    devices: Sequence[jax.Device] | None,
    cache: Cache | None,
    should_stop: Callable[[], bool],
    extend: bool,
    resume_from: int | None,
    member: Member | None,
) -> Run:
    parts = config_files.agreed(config)
    if config.wandb:
        processes.on_each(require_wandb)
    held = f"Another process or run is training in {workdir}; wait for it, or give another --workdir."
    lock = exclusive(workdir, held)
    is_new = processes.on_first(lambda: not workdir.exists())
    cache = cache or Cache()

    def check_workdir() -> None:
        if not is_new:  # else nothing is written before the data have been checked
            stack.enter_context(lock)
        if resume_from is not None:
            refuse_unknown_step(workdir, resume_from)
        read_metrics(workdir)  # a damaged file is refused before anything is written
        if has_checkpoint(workdir) and (workdir / config_files.FILE).exists():
            stored = config_files.load(workdir, defaults.get_config())
            config_files.refuse_other_training(config, stored, workdir, extend)

    processes.on_first(check_workdir)
    data = load_data(config.data, config.n_past, cache)
    data_now = data_hash(data["train"])
    processes.on_first(lambda: refuse_other_data(workdir / DATA_FILE, data_now, has_checkpoint(workdir)))
    chosen = Devices(devices)
    loader = make_loader(config, data["train"], chosen)
    if loader.too_short:
        tell(
            "These recordings are shorter than one clip "
            f"({span(config.clip_length, config.data.frame_step)} frames), and are not used in training: "
            f"{', '.join(loader.too_short)}."
        )
    controls = make_controls(config, parts, loader.num_batches)
    controls.values(0, 0)  # refuses schedules that do not fit the run's length
    check_steps(config.profile_steps, config.num_epochs * loader.num_batches)
    frame_size, label_size = data["train"][0].frames.shape[1:3], data["train"][0].label_size
    parts.objective.check_frame_size(*frame_size)
    refuse_batch_statistics_in_parts(config, parts, frame_size, label_size)
    step_options = make_step_options(config, parts, controls)
    program = parts.compiled, tuple(step_options.items()), chosen.devices  # what it depends on
    made = functools.partial(make_train_step, *parts.compiled, **step_options)
    if member is None:
        train_step = cache.get(("train", *program), lambda: chosen.map_update(made()))
    else:
        key = ("train", *program, member.group.size)
        train_step = member.step(lambda: cache.get(key, lambda: chosen.map_update(make_group_step(made()))))
    measures, _ = choose(data["validation"], bool(parts.evaluation.lpips))  # LPIPS where it is required
    scorer = shared_scorer(cache, parts, chosen, dataclasses.replace(measures, person=False))

    profile = Profile(workdir, config.profile_steps if processes.is_first() else ())
    stack.callback(profile.close)
    validation = Validation(
        scorer, parts.objective, data["validation"], parts.evaluation.seed, config.log.images
    )
    checkpoints: Any = None  # these and the writers are process 0's
    writers: Any = None

    def open_workdir() -> None:
        nonlocal checkpoints, writers
        if is_new:
            stack.enter_context(lock)
            if has_checkpoint(workdir):  # another process began this run in the meantime
                raise UserError(held)
        wandb = start_wandb(config, workdir) if config.wandb else None
        writers = Writers(workdir, config.log.images, wandb)
        stack.callback(writers.close)
        period = parts.checkpoint.save_every * loader.num_batches
        checkpoints = Checkpoints(workdir, keep=parts.checkpoint.keep, period=period)
        stack.callback(checkpoints.close)

    def describe() -> None:
        config_files.save(config, workdir)
        for name, text in ((DATA_FILE, data_now), (FRAMES_FILE, json.dumps(list(frame_size)))):
            with replacing(workdir / name) as partial:
                partial.write_text(text + "\n")

    processes.on_first(open_workdir)
    return Run(
        initial_state=functools.partial(initial_state, parts, config.seed, frame_size, label_size),
        loader=loader,
        controls=controls,
        cadence=Cadence(
            config.num_epochs, parts.evaluation.every, parts.checkpoint.every, parts.checkpoint.minutes
        ),
        train_step=train_step,
        devices=chosen,
        validate=validation if member is None else InTurn(validation, member),
        checkpoints=checkpoints,
        writers=writers,
        metrics_file=workdir / METRICS_FILE,
        throughput=Throughput(
            config.clip_length - 1,
            lambda *arguments: cache.get(
                ("operations", *program),
                lambda: model_operations(parts, step_options, chosen, *arguments),
            ),
            chosen.devices,
            is_shared=member is not None,
        ),
        profile=profile,
        nonfinite=NonFinite(config.nonfinite, config.nonfinite_limit),
        should_stop=should_stop,
        resume_from=resume_from,
        describe=describe,
    )


def model_operations(
    parts: Components, step_options: dict[str, Any], devices: Devices, *arguments: Any
) -> tuple[Operations, Operations]:
    """Return the operations of a step on one device with true and with generated previous frames.

    Nothing counts that is computed twice: by the backward pass, or where a batch is taken in parts.
    """
    without = dataclasses.replace(parts, rollout=dataclasses.replace(parts.rollout, remat="none"))

    def count(throughout: bool) -> Operations:
        options = step_options | {"throughout": throughout, "accumulate_steps": 1}
        step = make_train_step(*without.compiled, **options)
        return count_operations(jax.make_jaxpr(devices.map_update(step))(*arguments))

    counted = [count(form) for form in forms(parts.model, parts.rollout, step_options["throughout"])]
    return counted[0], counted[-1]


def make_loader(config: ConfigDict, recordings: list[Recording], devices: Devices) -> TrainLoader:
    """Return the loader of a run's training clips."""
    size = devices.padded(config.batch_size, config.accumulate_steps)
    return TrainLoader(
        recordings,
        clip_length=config.clip_length,
        stride=config.data.stride,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle=config.data.shuffle,
        frame_step=config.data.frame_step,
        repeats=config.data.repeats,
        clips_per_epoch=config.data.clips_per_epoch,
        reference=config.data.reference,
        n_past=config.n_past,
        padded_size=size,
        share=devices.share(size),
    )


def refuse_batch_statistics_in_parts(
    config: ConfigDict, parts: Components, frame_size: tuple[int, int], label_size: int | None
) -> None:
    """Raise UserError where `config.accumulate_steps` does not go with the model."""
    if config.accumulate_steps > 1 and variable_shapes(parts.model, frame_size, label_size)["batch_stats"]:
        raise UserError(
            f"config.accumulate_steps is {config.accumulate_steps}, but config.model.{config.model.kind} "
            "normalises with statistics of the whole batch, which its parts do not have: set it to 1."
        )


def make_step_options(config: ConfigDict, parts: Components, controls: Controls) -> dict[str, Any]:
    """Return the options of `make_train_step` for a run."""
    return {
        "augmentation": parts.augmentation,
        # None where it changes nothing, so that such runs share one compiled step.
        "throughout": controls.throughout if parts.rollout.fold_time else None,
        "accumulate_steps": config.accumulate_steps,
    }


def make_controls(config: ConfigDict, parts: Components, steps_per_epoch: int) -> Controls:
    """Return the schedules of a run."""
    return Controls(
        parts.beta,
        parts.forcing,
        parts.learning_rate,
        seed=config.seed,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
        clip_length=config.clip_length,
        n_past=config.n_past,
    )


def initial_state(
    parts: Components, seed: int, frame_size: tuple[int, int], label_size: int | None
) -> TrainState:
    """Return the state of a run before its first step."""
    return TrainState.create(init_variables(parts.model, seed, frame_size, label_size), parts.optimizer)
