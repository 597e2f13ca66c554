"""A study: many runs, on each device one at a time, or those of one shape together.

A study's folder holds runs/<variant>/seed_<n>/, each an ordinary workdir, and the report on them. Nothing is
done twice: an interrupted study resumes where it stopped.
"""

from __future__ import annotations

import concurrent.futures
import json
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.config import Components
from cvae_jax.data.load import load_ceiling, load_data
from cvae_jax.evaluation import evaluate
from cvae_jax.evaluation.baselines import score_baselines
from cvae_jax.evaluation.measures import choose
from cvae_jax.evaluation.rows import rows
from cvae_jax.runtime import progress
from cvae_jax.runtime.cache import Cache
from cvae_jax.runtime.errors import NonFiniteError, UserError
from cvae_jax.runtime.files import exclusive, replacing
from cvae_jax.runtime.workdir import read_metrics
from cvae_jax.study import report
from cvae_jax.study.plan import STOPPED, Planned, plan, scorings
from cvae_jax.train import make_controls, make_step_options, open_run
from cvae_jax.training.gradients import forms
from cvae_jax.training.group import Group, Member
from cvae_jax.training.loop import Stopped

FILE = "study.json"


def run_study(study: ConfigDict, workdir: Path, devices: Sequence[jax.Device] | None = None) -> list[dict]:
    """Train and score every run of a study that is not done yet; write the report.

    A run that a non-finite number stops is part of the result: the report names it and leaves it out of the
    means. Returns the rows of the report's table.
    """
    runs = plan(study, workdir)
    cache = Cache()
    data = load_data(runs[0].config.data, runs[0].config.n_past, cache)  # prepared before the runs share it
    evaluate.of_split(data, study.split, runs[0].config.data.name)
    for run in runs:
        _refuse_other_run(study, run)
    held = f"Another process is at work on the study in {workdir}; wait for it, or give another --workdir."
    with exclusive(workdir, held):
        with replacing(workdir / FILE) as partial:
            partial.write_text(json.dumps(study.to_dict(), indent=2) + "\n")
        baselines = _score_baselines(study, runs[0], cache)
        _run_all(study, runs, cache, devices)
        return report.write(study, workdir, runs, baselines)


def _run_all(
    study: ConfigDict, runs: list[Planned], cache: Cache, devices: Sequence[jax.Device] | None
) -> None:
    free: queue.SimpleQueue[jax.Device] = queue.SimpleQueue()
    chosen = jax.local_devices() if devices is None else devices
    for device in chosen:
        free.put(device)
    stop = threading.Event()
    total = sum(run.config.num_epochs for run in runs)
    todo = [run for run in runs if not run.stopped and _left_to_score(study, run)]
    groups = grouped(study, todo, len(chosen))
    if shared := [len(group) for group in groups if len(group) > 1]:
        progress.tell(f"Runs of one shape train together, in groups of {', '.join(map(str, shared))}.")
    with tqdm(total=total, unit="epoch", desc=f"{len(runs)} runs", dynamic_ncols=True) as bar:
        bar.update(total - sum(run.config.num_epochs for run in todo))

        def train(run: Planned, device: jax.Device, group: Group, number: int) -> None:
            with progress.together(bar), group.member(number) as member:
                _run_one(study, run, device, cache, stop.is_set, member if group.size > 1 else None)

        def on_a_device(runs: list[Planned]) -> None:
            device, group = free.get(), Group(len(runs))
            try:
                with concurrent.futures.ThreadPoolExecutor(len(runs)) as members:
                    work = [
                        members.submit(train, run, device, group, number) for number, run in enumerate(runs)
                    ]
                    _finish(work, stop)
            finally:
                free.put(device)

        pool = concurrent.futures.ThreadPoolExecutor(len(chosen))
        try:
            _finish([pool.submit(on_a_device, group) for group in groups], stop)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finish(work: list[concurrent.futures.Future], stop: threading.Event) -> None:
    """Wait for work; the first error ends the study: other runs stop after their step, nothing writes on."""
    errors: list[BaseException] = []
    try:
        for future in concurrent.futures.as_completed(work):
            try:
                future.result()
            except concurrent.futures.CancelledError:
                pass
            except Exception as error:
                errors.append(error)
                stop.set()
                for other in work:
                    other.cancel()
    except BaseException:  # an interrupt
        stop.set()
        raise
    if errors:
        raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])


def grouped(study: ConfigDict, runs: list[Planned], devices: int) -> list[list[Planned]]:
    """Return runs in groups that train together: those of one shape, `study.together` at most.

    On accelerators the default is all of a shape, spread evenly over the devices, unless its program chooses
    between true and generated frames by each run's draws: a group computes both. On a CPU, whose cores one
    run keeps busy, the default is one.
    """
    shapes: dict[Hashable, list[Planned]] = {}
    for run in runs:
        shapes.setdefault(_shape(run.config), []).append(run)
    groups = []
    for alike in shapes.values():
        alone = jax.default_backend() == "cpu" or _chooses(alike[0].config)
        most = study.together or (1 if alone else len(alike))
        number = max(-(-len(alike) // most), min(devices, len(alike)))
        groups += [alike[first::number] for first in range(number)]
    order = {id(run): place for place, run in enumerate(runs)}
    return sorted(groups, key=lambda group: order[id(group[0])])


def _shape(config: ConfigDict) -> Hashable:
    """Return what runs must have in common to be one program of one length: all but schedules and draws."""
    parts = Components.build(config)
    options = make_step_options(config, parts, make_controls(config, parts, steps_per_epoch=1))
    sizes = config.batch_size, config.clip_length, config.num_epochs, config.data.to_json(sort_keys=True)
    by_clip = config.teacher_forcing.draw == "example_step"
    return parts.compiled, tuple(options.items()), sizes, by_clip


def _chooses(config: ConfigDict) -> bool:
    """Return whether a run's program chooses by its draws between two forms of the step."""
    parts = Components.build(config)
    throughout = make_controls(config, parts, steps_per_epoch=1).throughout
    return len(forms(parts.model, parts.rollout, throughout)) > 1


def _refuse_other_run(study: ConfigDict, run: Planned) -> None:
    """Raise UserError if a run's folder holds one of another config or length, or its files are damaged."""
    for split, epoch in scorings(study, run):
        run.scores(split, epoch)
    read_metrics(run.workdir)
    if not (run.workdir / config_files.FILE).exists():
        return
    stored = config_files.load(run.workdir, defaults.get_config())
    if stored.num_epochs != run.config.num_epochs:
        raise UserError(
            f"The run in {run.workdir} was started for {stored.num_epochs} epochs and not for "
            f"{run.config.num_epochs}, and its schedules depend on it: give the same number, or another "
            "--workdir."
        )
    config_files.refuse_other_training(run.config, stored, run.workdir)


def _run_one(
    study: ConfigDict,
    run: Planned,
    device: jax.Device,
    cache: Cache,
    should_stop: Callable[[], bool],
    member: Member | None,
) -> None:
    try:
        training = open_run(run.config, run.workdir, [device], cache, should_stop, member=member)
        training.finish()
    except NonFiniteError as error:
        with replacing(run.workdir / STOPPED) as partial:
            partial.write_text(json.dumps({"reason": str(error)}) + "\n")
        return
    if member is not None:
        member.group.leave(member.number)  # the steps of the others need not wait for its scores
    score = evaluate.score if member is None else member.in_turn(evaluate.score)
    for split, epoch in _left_to_score(study, run):
        step = str(epoch * training.loader.num_batches)
        scores = score(run.config, run.workdir, step, [device], split, baselines=False, cache=cache)
        with replacing(run.scores_path(split, epoch)) as partial:
            results = {"eval": run.config.eval.to_dict()} | scores.results
            partial.write_text(json.dumps(results, allow_nan=False) + "\n")


def _left_to_score(study: ConfigDict, run: Planned) -> list[tuple[str, int]]:
    """Return the scorings of a run, see `scorings`, that have not been done with the same settings."""
    found = {scoring: run.scores(*scoring) for scoring in scorings(study, run)}
    own = run.config.eval.to_dict()
    return [scoring for scoring, scores in found.items() if scores is None or scores["eval"] != own]


def _score_baselines(study: ConfigDict, run: Planned, cache: Cache) -> dict[str, dict]:
    """Return {baseline: its row} of the study's split."""
    data = load_data(run.config.data, run.config.n_past, cache)
    recordings = evaluate.of_split(data, study.split, run.config.data.name)
    measures, _ = choose(recordings, run.config.eval.lpips)
    ceiling = load_ceiling(run.config.data, study.split)
    scores, _ = score_baselines(data["train"], recordings, run.config.n_past, measures, ceiling)
    found = rows(scores, Components.build(run.config).evaluation)
    return {row["name"]: row for row in found if "scene" not in row}
