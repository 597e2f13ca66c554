"""Where evaluate.py writes the results of a split, and how they are read."""

from __future__ import annotations

import json
from pathlib import Path

from cvae_jax.runtime import cli
from cvae_jax.runtime.errors import UserError

FOLDER, FILE = "eval", "results.json"


def folder_of(workdir: Path, split: str, default: str) -> Path:
    """Return where the results of a split are written: W/eval/ for the default one, or W/eval_<split>/.

    default: the split of the data set that is scored by default.
    """
    return workdir / (FOLDER if split == default else f"{FOLDER}_{split}")


def folder_with(workdir: Path, split: str | None) -> Path:
    """Return the folder that holds the results of a split; None: those of the split scored by default.

    Where both W/eval/ and W/eval_<split>/ hold the split, the newer one.
    """
    if split is None:
        return workdir / FOLDER
    candidates = [workdir / FOLDER, workdir / f"{FOLDER}_{split}"]
    found = [folder for folder in candidates if _split_of(folder) == split]
    return max(found, key=lambda folder: (folder / FILE).stat().st_mtime, default=candidates[1])


def _split_of(folder: Path) -> str | None:
    try:
        return json.loads((folder / FILE).read_text())["protocol"]["split"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(folder: Path, workdir: Path, split: str | None) -> dict:
    """Return the contents of results.json; UserError where it is missing or cannot be read."""
    path = folder / FILE
    flag = "" if split is None else f" --split={split}"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"There is no {path}; run {cli.command('evaluate')} --workdir={workdir}{flag} first."
        ) from None
    except ValueError:
        raise UserError(
            f"{path} is not whole; run {cli.command('evaluate')} --workdir={workdir}{flag} again."
        ) from None
