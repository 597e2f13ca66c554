"""Many runs compared: each variant of a base config over several seeds, one run per device at a time.

A study's folder holds runs/<variant>/seed_<n>/, each an ordinary workdir, and the report made of them. What
is done is not done again: an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import fcntl
import json
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from configs import default
from cvae_jax import config as config_files
from cvae_jax import evaluate, progress
from cvae_jax.config import Components
from cvae_jax.errors import NonFiniteError, UserError
from cvae_jax.files import replacing
from cvae_jax.report import study as report
from cvae_jax.train import METRICS_FILE, Programs, Run

FILE = "study.json"
STOPPED = "stopped.json"


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of a study: its variant, its seed, its whole config and its folder."""

    variant: str
    seed: int
    config: ConfigDict
    workdir: Path

    @property
    def stopped(self) -> bool:
        """Whether a number that was not finite ended the run."""
        return (self.workdir / STOPPED).exists()

    @property
    def epochs_shown(self) -> list[int]:
        """After how many epochs figure 4 looks at it: at half time, if that is kept, and at the end."""
        epochs, kept = self.config.num_epochs, self.config.checkpoint.save_every
        return [epochs // 2, epochs] if kept and epochs % (2 * kept) == 0 else [epochs]

    @property
    def history(self) -> list[dict]:
        """The rows of its metrics.jsonl."""
        path = self.workdir / METRICS_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def scores_path(self, split: str, epoch: int) -> Path:
        """Return the file with the scores of the checkpoint after `epoch` epochs on a split."""
        return self.workdir / "study" / f"{split}_epoch_{epoch}.json"

    def scores(self, split: str, epoch: int) -> dict | None:
        """Return those scores, if they have been made."""
        path = self.scores_path(split, epoch)
        return json.loads(path.read_text()) if path.exists() else None


def plan(study: ConfigDict, workdir: Path) -> list[Planned]:
    """Return the runs of a study, seed after seed, so that what is done early can be compared.

    Raises UserError for a variant that changes no field of a run, or a field to what it cannot be, and
    for figures of variants that do not exist; variants that were not chosen are left out of the figures.
    """
    _check(study)
    runs = []
    for seed in range(study.base.seed, study.base.seed + study.seeds):
        for name in study.variants:
            config = copy.deepcopy(study.base).lock()
            try:
                config.update(study.changes[name])
            except (AttributeError, KeyError, TypeError) as error:
                text = error.args[0] if error.args else error
                raise UserError(f"config.changes.{name} does not fit the config of a run: {text}") from None
            config.seed, config.name = seed, name
            Components.build(config)
            runs.append(Planned(name, seed, config, workdir / "runs" / name / f"seed_{seed}"))
    return runs


def _check(study: ConfigDict) -> None:
    if study.seeds < 1:
        raise UserError(f"config.seeds is {study.seeds}; give at least 1.")
    unknown = [name for name in study.variants if name not in study.changes]
    if unknown or not study.variants:
        raise UserError(f"config.variants is {study.variants}; choose among {', '.join(study.changes)}.")
    shown = {f"config.figures.{field}": names for field, names in study.figures.items()}
    for field, names in (shown | {"config.compare": study.compare}).items():
        for name in (names,) if isinstance(names, str) else names:
            if name and name not in study.changes:
                raise UserError(
                    f"{field} names {name!r}; choose among the variants {', '.join(study.changes)}."
                )
    if study.base.wandb:
        raise UserError(
            "config.base.wandb is True, but the runs of a study log to their folders only; leave it out."
        )


def conduct(study: ConfigDict, workdir: Path, devices: Sequence[jax.Device] | None = None) -> list[dict]:
    """Train and score every run of a study that is not done yet, one on each device; write the report.

    A run that is stopped by a number that is not finite is part of the result: it is told, and left out
    of the means. Returns the rows of the report's table.
    """
    runs = plan(study, workdir)
    for run in runs:
        _refuse_other_run(run)
    with _alone(workdir):
        with replacing(workdir / FILE) as partial:
            partial.write_text(json.dumps(study.to_dict(), indent=2) + "\n")
        programs = Programs()
        # Prepares the data as well, before the runs share them.
        baselines = _score_baselines(study, runs[0], programs)
        _conduct_all(study, runs, programs, devices)
        return report.write(study, workdir, runs, baselines)


def _conduct_all(
    study: ConfigDict, runs: list[Planned], programs: Programs, devices: Sequence[jax.Device] | None
) -> None:
    free: queue.SimpleQueue[jax.Device] = queue.SimpleQueue()
    chosen = jax.local_devices() if devices is None else devices
    for device in chosen:
        free.put(device)
    total = sum(run.config.num_epochs for run in runs)
    with tqdm(total=total, unit="epoch", desc=f"{len(runs)} runs", dynamic_ncols=True) as bar:

        def on_a_device(run: Planned) -> None:
            device = free.get()
            try:
                with progress.together(bar):
                    _conduct(study, run, device, programs)
            finally:
                free.put(device)

        pool = concurrent.futures.ThreadPoolExecutor(len(chosen))
        started = [pool.submit(on_a_device, run) for run in runs]
        try:
            for future in concurrent.futures.as_completed(started):
                future.result()
        finally:  # the first mistake ends the study: runs in progress go on where they are next time
            pool.shutdown(wait=False, cancel_futures=True)


def _refuse_other_run(run: Planned) -> None:
    """Raise UserError where the run's folder holds one of another config, or of another length."""
    if not (run.workdir / config_files.FILE).exists():
        return
    stored = config_files.load(run.workdir, default.get_config())
    config_files.refuse_other_training(run.config, stored, run.workdir)
    if stored.num_epochs != run.config.num_epochs:
        raise UserError(
            f"The run in {run.workdir} was started for {stored.num_epochs} epochs and not for "
            f"{run.config.num_epochs}, and its schedules depend on it: give the same number, or another "
            "--workdir."
        )


@contextlib.contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Hold the study's folder; UserError where another process does."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"Cannot write to the study's folder {workdir} ({error.strerror}); give --workdir another place."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is at work on the study in {workdir}; wait for it, or give another "
                "--workdir."
            ) from None
        yield


def _conduct(study: ConfigDict, run: Planned, device: jax.Device, programs: Programs) -> None:
    todo = [scoring for scoring in scorings(study, run) if not _scored(run, *scoring)]
    if run.stopped or not todo:
        progress.resumed(run.config.num_epochs, 0)
        return
    try:
        training = Run(run.config, run.workdir, [device], programs)
        training.finish()
    except NonFiniteError as error:
        with replacing(run.workdir / STOPPED) as partial:
            partial.write_text(json.dumps({"reason": str(error)}) + "\n")
        return
    for split, epoch in todo:
        step = str(epoch * training.loader.num_batches)
        scores = evaluate.score(
            run.config, run.workdir, step, [device], split, baselines=False, programs=programs
        )
        with replacing(run.scores_path(split, epoch)) as partial:
            results = {"eval": run.config.eval.to_dict()} | scores.results
            partial.write_text(json.dumps(results, allow_nan=False) + "\n")


def _scored(run: Planned, split: str, epoch: int) -> bool:
    scores = run.scores(split, epoch)
    return scores is not None and scores["eval"] == run.config.eval.to_dict()


def _score_baselines(study: ConfigDict, run: Planned, programs: Programs) -> dict[str, dict]:
    """Return {baseline: its row} of the study's split."""
    data = programs.data(run.config)
    recordings = evaluate.of_split(data, study.split, run.config.data.name)
    scores = evaluate.score_baselines(data["train"], recordings, run.config.n_past)
    return {row["name"]: row for row in evaluate.rows(scores, run.config) if "scene" not in row}


def scorings(study: ConfigDict, run: Planned) -> Iterator[tuple[str, int]]:
    """Yield (split, epochs trained) of what is scored of a run: for the table, and for figure 4."""
    yield study.split, run.config.num_epochs
    if run.variant in (*study.figures.schedules, *study.figures.schedules_scaled):
        for epoch in run.epochs_shown:
            if (study.split, run.config.num_epochs) != ("validation", epoch):
                yield "validation", epoch
