"""What a resumed run checks and repairs before it continues, and the rows it continues."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cvae_jax.runtime.errors import NonFiniteError, UserError
from cvae_jax.runtime.files import nan_to_null, replacing
from cvae_jax.training.checkpoint import Checkpoints


def refuse_other_data(path: Path, found: str, trained: bool) -> None:
    """Raise UserError if a resumed run was trained on other data (a folder that was moved is the same)."""
    if trained and path.exists() and path.read_text().strip() != found:
        raise UserError(
            f"The run in {path.parent} was trained on other data than the config gives now: give the same "
            "data to resume it, or another --workdir to start a new run."
        )


def refuse_non_finite(values: dict[str, float], number: int, epoch: int, checkpoints: Checkpoints) -> None:
    """Raise NonFiniteError if a step's loss or gradient was not finite, saying what to do about it."""
    if values["finite"]:
        return
    checkpoints.wait()
    kept = checkpoints.steps
    last = f"the last checkpoint is step {kept[-1]}" if kept else "there is no checkpoint yet"
    raise NonFiniteError(
        f"Training stopped at epoch {epoch}, batch {number}: the loss is {values['loss']} and the "
        f"gradient's norm {values['grad_norm']}; {last} in {checkpoints.folder}. Lower "
        "config.learning_rate.peak, or give beta a floor (config.beta.floor), and start a new run."
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


def append_row(path: Path, row: dict) -> None:
    """Append one JSON object and wait until it is on disk (the checkpoint that follows relies on it)."""
    with path.open("a") as file:
        file.write(json.dumps(nan_to_null(row), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
