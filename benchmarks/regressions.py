"""What has become slower than the committed numbers: ratios to PyTorch on the same kind of CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES

COMMITTED = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.json"
SAME = ("cpu", "vectors", "threads")  # of two machines of one kind


def compare(found: dict[str, dict], here: dict[str, Any], committed: dict[str, dict]) -> list[str]:
    """Return sentences: which cases are slower or faster than committed, beyond both spreads.

    found, committed: {case: its numbers}, as `run.py` writes them; '_machine' of committed is where it was
    measured, here is this machine. Ratios are compared and not seconds, which differ between machines of one
    kind. A case has changed where the middle halves of its ratios do not overlap.
    """
    there = committed["_machine"]
    if there["packages"]["torch"] != here["packages"]["torch"]:
        torch = there["packages"]["torch"]
        return [f"Not compared with {COMMITTED.name}, which was measured with PyTorch {torch}."]
    if any(there[key] != here[key] for key in SAME):
        kind = f"{there['cpu']} ({there['vectors']}) with {there['threads']} threads"
        return [f"Not compared with {COMMITTED.name}, which was measured on another kind of machine: {kind}."]
    titles = {case.name: case.title for case in CASES}
    sentences = []
    for name in [name for name in found if name in committed and not name.startswith("_")]:
        (low, high), (old_low, old_high) = (each[name]["ratio_middle_half"] for each in (found, committed))
        change = "SLOWER" if high < old_low else "faster" if low > old_high else None
        if change:
            ratio, old = found[name]["ratio"], committed[name]["ratio"]
            sentences.append(
                f"{change}: {titles[name]} is {ratio:.2f} times as fast as PyTorch (middle half {low:.2f} - "
                f"{high:.2f}) and was {old:.2f} ({old_low:.2f} - {old_high:.2f}) in {COMMITTED.name} of "
                f"{there['date']}."
            )
    unknown = [titles[name] for name in found if name in titles and name not in committed]
    if unknown:
        sentences.append(f"Not in {COMMITTED.name}: {', '.join(unknown)}.")
    return sentences or [f"As fast as in {COMMITTED.name} of {there['date']}, within the spread."]


def against_committed(found: dict[str, dict], here: dict[str, Any]) -> list[str]:
    """Return `compare` with docs/benchmarks.json."""
    if not COMMITTED.exists():
        return [f"Not compared: there is no {COMMITTED}."]
    return compare(found, here, json.loads(COMMITTED.read_text()))
