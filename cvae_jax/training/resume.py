"""Where a run resumes, what it checks and repairs before it continues, and the rows it continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax

from cvae_jax.runtime.errors import DamagedError, UserError
from cvae_jax.runtime.files import append_line, nan_to_null, replacing
from cvae_jax.runtime.progress import warn
from cvae_jax.runtime.workdir import read_metrics
from cvae_jax.training import checkpoint_folder
from cvae_jax.training.checkpoint import Checkpoints, Progress
from cvae_jax.training.checkpoint_folder import NONE_LEFT
from cvae_jax.training.state import TrainState


def resume(
    checkpoints: Checkpoints,
    workdir: Path,
    initial_state: Callable[[], TrainState],
    step: int | None = None,
) -> tuple[TrainState, Progress] | None:
    """Return the state and progress to go on from, or None where there is no checkpoint.

    step: None resumes from the newest checkpoint that is not damaged; a number resumes from that step, but
    only once, so that restarting a job with the same command keeps its progress. Newer checkpoints are set
    aside. initial_state: gives the shapes; it is not computed.

    Raises DamagedError where all checkpoints, or that of the given step, are damaged, and UserError where one
    is of another model; nothing is renamed then.
    """
    if step in checkpoint_folder.steps_resumed_from(workdir):
        warn(
            f"The run has gone back to step {step} before, and resumes from its newest checkpoint now. To go "
            f"back again, delete {workdir / checkpoint_folder.RESUMED_FILE}."
        )
        step = None
    steps = checkpoints.steps
    if step is not None and step not in steps:
        raise UserError(
            f"--resume_from is {step}, but that checkpoint has been set aside; choose one of "
            f"{', '.join(map(str, steps))}."
        )
    damaged: dict[int, DamagedError] = {}
    for chosen in reversed(steps) if step is None else [step]:
        try:
            restored = checkpoints.restore(jax.eval_shape(initial_state), chosen)
        except DamagedError as error:
            damaged[chosen] = error
            continue
        checkpoints.set_newer_aside(chosen, damaged)
        if step is not None:
            checkpoint_folder.note_resumed_from(workdir, step)
        return restored
    if damaged:
        newest = max(damaged)
        advice = NONE_LEFT if step is None else checkpoints.advice(newest, "--resume_from")
        raise DamagedError(checkpoints.folder / str(newest), damaged[newest].found, advice)
    return None


def refuse_other_data(path: Path, found: str, trained: bool) -> None:
    """Raise UserError if a resumed run was trained on other data (a folder that was moved is the same)."""
    if trained and path.exists() and path.read_bytes().strip() != found.encode():
        raise UserError(
            f"The run in {path.parent} was trained on other data than the config describes now: give the "
            "same data to resume it, or another --workdir to start a new run."
        )


def keep_rows(path: Path, epochs: int) -> None:
    """Drop the rows of epochs that will be run again, lines that cannot be read, and rows that are doubled.

    A line cut short by a kill is of an epoch that will be run again; other rows that are lost are reported.
    """
    if not path.exists():
        return
    rows = {row["epoch"]: row for row in read_metrics(path.parent) if 0 <= row["epoch"] < epochs}
    lost = [str(epoch) for epoch in range(epochs) if epoch not in rows]
    if lost:
        warn(f"{path} is damaged: the rows of the epochs {', '.join(lost)} (counted from 0) are missing.")
    kept = "".join(_line(row) + "\n" for row in rows.values()).encode()
    if kept != path.read_bytes():
        with replacing(path) as partial:
            partial.write_bytes(kept)


def append_row(path: Path, row: dict) -> None:
    """Append one JSON object and wait until it is on disk (the checkpoint that follows relies on it)."""
    append_line(path, _line(row))


def _line(row: dict) -> str:
    return json.dumps(nan_to_null(row), allow_nan=False)
