"""The files of a run's folder, and reading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
DATA_FILE = "train_data.blake2b"
FRAMES_FILE = "frame_size.json"  # (H, W) that the run was trained on, whatever data its config names later


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, one per epoch; [] where there is none."""
    path = workdir / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_frame_size(workdir: Path) -> tuple[int, int] | None:
    """Return (H, W) of the frames a run was trained on; None where the run has not stored it."""
    path = workdir / FRAMES_FILE
    return tuple(json.loads(path.read_text())) if path.is_file() else None
