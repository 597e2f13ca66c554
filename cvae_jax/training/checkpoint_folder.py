"""The folder of a run's checkpoints without orbax: which steps are there, and which are out of use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cvae_jax.runtime.errors import DamagedError, UserError
from cvae_jax.runtime.files import replacing
from cvae_jax.runtime.progress import warn
from cvae_jax.runtime.workdir import METRICS_FILE
from cvae_jax.training import digests

FOLDER = "checkpoints"
RESUMED_FILE = "resumed_from.json"  # in the workdir: the steps that --resume_from has gone back to
HALF_WRITTEN = "*.orbax-checkpoint-tmp"  # folders of checkpoints that orbax is writing
NONE_LEFT = "no other checkpoint is intact: put a copy in its place, or give another --workdir"
# Suffixes of the folders of checkpoints that are not used.
REPLACED, SET_ASIDE, DAMAGED = "replaced", "set_aside", "damaged"


def stored_steps(workdir: Path) -> list[int]:
    """Return the steps of the complete checkpoints of a workdir, those that are being replaced included."""
    names = {path.name.removesuffix(f".{REPLACED}") for path in (workdir / FOLDER).glob("*")}
    return sorted(int(name) for name in names if name.isdecimal())


def has_checkpoint(workdir: Path) -> bool:
    """Return whether a workdir holds a complete checkpoint."""
    return bool(stored_steps(workdir))


def move_to_replace(folder: Path) -> None:
    """Rename the folder of a checkpoint that will be written anew; it stays usable until that is done."""
    folder.rename(folder.with_name(f"{folder.name}.{REPLACED}"))


def settle_replaced(workdir: Path) -> None:
    """Delete checkpoints that have been replaced, and take back those whose replacement is not sound."""
    for replaced in (workdir / FOLDER).glob(f"*.{REPLACED}"):
        folder = replaced.with_suffix("")
        if digests.is_sound(folder):
            shutil.rmtree(replaced)
            continue
        if folder.exists():
            set_aside(folder, DAMAGED)
        replaced.rename(folder)


def remove_half_written(workdir: Path) -> None:
    """Delete what is left of checkpoints whose writing has failed."""
    for folder in (workdir / FOLDER).glob(HALF_WRITTEN):
        shutil.rmtree(folder, ignore_errors=True)


def refuse_damaged_metrics(workdir: Path, read_only: bool) -> None:
    """Set aside the checkpoints whose metrics are damaged, which orbax reads when it opens the folder.

    read_only: rename nothing. Raises DamagedError where one is left that orbax would read, or where no other
    checkpoint is sound.
    """
    folders = {step: workdir / FOLDER / str(step) for step in stored_steps(workdir)}
    damaged = {}
    for step, folder in folders.items():
        found = digests.damage(folder, only="metrics/")
        if found and read_only:
            if found.kind == "missing":  # training deletes old checkpoints, and orbax does not mind
                continue
            raise DamagedError(folder, found, f"move it out of {folder.parent} to use the others")
        if found:
            damaged[step] = found
    if damaged and all(digests.damage(folders[step]) for step in folders.keys() - damaged.keys()):
        newest = max(damaged)
        raise DamagedError(folders[newest], damaged[newest], NONE_LEFT)
    for step, found in damaged.items():
        error = DamagedError(folders[step], found)
        warn(f"{error} It has been moved to {set_aside(folders[step], DAMAGED)}.")


def set_aside(folder: Path, suffix: str) -> Path:
    """Rename the folder of a checkpoint, so that it is out of use but not lost; return the new one.

    It is given a copy of metrics.jsonl, from which later rows will be dropped.
    """
    rows = folder.parent.parent / METRICS_FILE
    if rows.exists():
        shutil.copy(rows, folder / METRICS_FILE)
    number, kept = 1, folder.with_name(f"{folder.name}.{suffix}")
    while kept.exists():
        number += 1
        kept = folder.with_name(f"{folder.name}.{suffix}_{number}")
    folder.rename(kept)
    return kept


def steps_resumed_from(workdir: Path) -> list[int]:
    """Return the steps that --resume_from has gone back to."""
    path = workdir / RESUMED_FILE
    try:
        steps = json.loads(path.read_text()) if path.exists() else []
        if not isinstance(steps, list):
            raise TypeError
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged: delete it, unless you can restore its list of steps.") from None
    return steps


def note_resumed_from(workdir: Path, step: int) -> None:
    """Note that --resume_from has gone back to a step."""
    with replacing(workdir / RESUMED_FILE) as partial:
        partial.write_text(json.dumps([*steps_resumed_from(workdir), step]) + "\n")


def refuse_unknown_step(workdir: Path, step: int) -> None:
    """Raise UserError where a run has no checkpoint of a step to resume from, and never went back to it."""
    steps = stored_steps(workdir)
    if step not in [*steps, *steps_resumed_from(workdir)]:
        known = (
            f"choose one of {', '.join(map(str, steps))}" if steps else "there is none; leave out the flag"
        )
        raise UserError(f"--resume_from is {step}, but {workdir / FOLDER} has no such checkpoint: {known}.")
