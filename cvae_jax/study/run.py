"""A study: many runs, one on each device at a time.

A study's folder holds runs/<variant>/seed_<n>/, each an ordinary workdir, and the report on them. Nothing is
done twice: an interrupted study resumes where it stopped.
"""

from __future__ import annotations

import concurrent.futures
import json
import queue
import threading
from collections.abc import Callable, Sequence
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
from cvae_jax.train import open_run

FILE = "study.json"


def run_study(study: ConfigDict, workdir: Path, devices: Sequence[jax.Device] | None = None) -> list[dict]:
    """Train and score every run of a study that is not done yet, one on each device; write the report.

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
    with tqdm(total=total, unit="epoch", desc=f"{len(runs)} runs", dynamic_ncols=True) as bar:

        def on_a_device(run: Planned) -> None:
            device = free.get()
            try:
                with progress.together(bar):
                    _run_one(study, run, device, cache, stop.is_set)
            finally:
                free.put(device)

        pool = concurrent.futures.ThreadPoolExecutor(len(chosen))
        started = [pool.submit(on_a_device, run) for run in runs]
        try:
            for future in concurrent.futures.as_completed(started):
                future.result()
        finally:  # the first error ends the study: other runs stop after their step, and nothing writes on
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


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
    study: ConfigDict, run: Planned, device: jax.Device, cache: Cache, should_stop: Callable[[], bool]
) -> None:
    todo = [scoring for scoring in scorings(study, run) if not _scored(run, *scoring)]
    if run.stopped or not todo:
        progress.announce_resume(run.config.num_epochs, 0, run.config.num_epochs)
        return
    try:
        training = open_run(run.config, run.workdir, [device], cache, should_stop)
        training.finish()
    except NonFiniteError as error:
        with replacing(run.workdir / STOPPED) as partial:
            partial.write_text(json.dumps({"reason": str(error)}) + "\n")
        return
    for split, epoch in todo:
        step = str(epoch * training.loader.num_batches)
        scores = evaluate.score(run.config, run.workdir, step, [device], split, baselines=False, cache=cache)
        with replacing(run.scores_path(split, epoch)) as partial:
            results = {"eval": run.config.eval.to_dict()} | scores.results
            partial.write_text(json.dumps(results, allow_nan=False) + "\n")


def _scored(run: Planned, split: str, epoch: int) -> bool:
    scores = run.scores(split, epoch)
    return scores is not None and scores["eval"] == run.config.eval.to_dict()


def _score_baselines(study: ConfigDict, run: Planned, cache: Cache) -> dict[str, dict]:
    """Return {baseline: its row} of the study's split."""
    data = load_data(run.config.data, run.config.n_past, cache)
    recordings = evaluate.of_split(data, study.split, run.config.data.name)
    measures, _ = choose(recordings, run.config.eval.lpips)
    ceiling = load_ceiling(run.config.data, study.split)
    scores, _ = score_baselines(data["train"], recordings, run.config.n_past, measures, ceiling)
    found = rows(scores, Components.build(run.config).evaluation)
    return {row["name"]: row for row in found if "scene" not in row}
