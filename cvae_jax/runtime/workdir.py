"""The files of a run's folder, and reading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cvae_jax.runtime.errors import UserError

METRICS_FILE = "metrics.jsonl"
DATA_FILE = "train_data.blake2b"
FRAMES_FILE = "frame_size.json"  # (H, W) that the run was trained on, whatever data its config names later


def default_workdir(name: str) -> Path:
    """Return the workdir of a run or study whose config has this name; UserError if it names none."""
    path = Path("runs") / name
    if path == Path("runs") or path.is_absolute() or ".." in path.parts:
        raise UserError(f"config.name is {name!r}; give the name of a folder below runs/, or a --workdir.")
    return path


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, one per epoch; [] where there is none.

    A last line that does not end, as a kill leaves it, is left out. Raises UserError for another line that
    is no row.
    """
    path = workdir / METRICS_FILE
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], 1):
        try:
            row = json.loads(line)
            if not isinstance(row["epoch"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            if not line.endswith(b"\n"):
                break
            raise UserError(
                f"Line {number} of {path} is not a row of an epoch: correct or delete that line, or move the "
                "file elsewhere."
            ) from None
        rows.append(row)
    return rows


def read_frame_size(workdir: Path) -> tuple[int, int] | None:
    """Return (H, W) of the frames a run was trained on; None where the run has not stored it.

    Raises UserError for a file that holds something else.
    """
    path = workdir / FRAMES_FILE
    if not path.is_file():
        return None
    try:
        height, width = json.loads(path.read_text())
        if not all(type(side) is int and side > 0 for side in (height, width)):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise UserError(
            f"{path} does not hold a frame size: replace its contents by [height, width] of the frames that "
            "the run was trained on, in pixels."
        ) from None
    return height, width
