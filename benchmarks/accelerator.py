"""The speed of training steps on this machine's accelerator: python benchmarks/accelerator.py [--tiny].

Times steps of the multiscale model and of the report's CVAE in float32 and bfloat16 on one device, and writes
the section "Accelerator" of docs/benchmarks.md and docs/benchmarks_accelerator.json. Each of ROUNDS rounds
dispatches REPEATS steps, waits for the last one and reports the time per step. The script takes a few
minutes, mostly for compilation. --tiny runs every case with a small model and leaves docs/ as it is, to test
the script on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

from benchmarks import worker  # noqa: E402
from benchmarks.pages import ACCELERATOR_HEADING, refuse_unwritable, with_section, write  # noqa: E402
from cvae_jax.runtime.cli import fail  # noqa: E402

REPEATS, ROUNDS = 10, 5
TINY_REPEATS, TINY_ROUNDS = 1, 2
TINY = {
    "multiscale": {"widths": (16, 16)},
    "cvae": {"frame_features": 8, "label_features": 4, "latent_channels": 4, "decoder_features": 12},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step: what it is called, its config and batch."""

    title: str
    recipe: str  # a module of configs/, or report: the defaults
    batch: int
    frames: int
    precision: str = "float32"
    optimizer: str = "adam"
    teacher_forced: bool = True
    widths: tuple[int, ...] | None = None


def cases() -> list[Case]:
    """Return the timed cases, in the table's order."""
    small = dict(recipe="recommended", frames=2)
    found = [Case("multiscale", batch=8, optimizer=kind, **small) for kind in ("adam", "muon")]
    for precision in ("float32", "bfloat16"):
        found.append(Case("multiscale", batch=128, precision=precision, optimizer="muon", **small))
    wide = "multiscale, twice as wide"
    found.append(
        Case(wide, batch=32, precision="bfloat16", optimizer="muon", widths=(32, 96, 144, 192), **small)
    )
    for precision in ("float32", "bfloat16"):
        for forced, title in ((True, "teacher-forced"), (False, "autoregressive")):
            found.append(
                Case(f"the report's CVAE, {title}", "report", 10, 16, precision, teacher_forced=forced)
            )
    return found


def config_of(case: Case, tiny: bool) -> Any:
    """Return the config of a case."""
    from configs import recommended
    from cvae_jax import defaults

    config = (recommended if case.recipe == "recommended" else defaults).get_config()
    config.precision, config.optimizer.kind = case.precision, case.optimizer
    if case.widths:
        config.model.multiscale.widths = case.widths
    if tiny:
        config.model[config.model.kind].update(TINY[config.model.kind])
    return config


def measure(devices: Any, case: Case, tiny: bool) -> dict:
    """Return the milliseconds of a step in each round, ascending, and the seconds of the first step."""
    _, state, step = worker.build(devices, config_of(case, tiny))
    batch, frames = (2, min(case.frames, 3)) if tiny else (case.batch, case.frames)
    arrays, controls = worker.inputs(devices, batch, frames, case.teacher_forced)

    def seconds(repeats: int) -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(repeats):
            state, metrics = step(state, arrays, controls)
        float(metrics["loss"])
        return time.perf_counter() - started

    first = seconds(1)
    seconds(2)
    repeats, rounds = (TINY_REPEATS, TINY_ROUNDS) if tiny else (REPEATS, ROUNDS)
    milliseconds = sorted(1e3 * seconds(repeats) / repeats for _ in range(rounds))
    rate = batch * (frames - 1) / statistics.median(milliseconds) * 1e3
    return {"ms": milliseconds, "first_seconds": first, "frames_per_second": rate}


def section(report: dict) -> str:
    """Return the section of docs/benchmarks.md."""
    rows = []
    for row in report["cases"]:
        times, of = row["ms"], f"{row['optimizer']}, {row['precision']}"
        spread = f"{statistics.median(times):.3g} ({min(times):.3g} - {max(times):.3g})"
        rows.append(
            f"| {row['title']} | {row['batch']} x {row['frames']} | {of} | {spread} "
            f"| {row['frames_per_second']:,.0f} |"
        )
    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    table = "\n".join(rows)
    rounds, repeats = len(report["cases"][0]["ms"]), report["repeats"]
    note = f"\n{report['note']}\n" if report["note"] else ""
    return f"""{ACCELERATOR_HEADING}

Written by `python benchmarks/accelerator.py` on {report["date"]}; the numbers are in
[benchmarks_accelerator.json](benchmarks_accelerator.json). One {report["device"]}, {packages}. The table
gives the time of a training step at 32 x 64, with the batch already on the device: the median of {rounds}
rounds of {repeats} steps, with the minimum and maximum in parentheses. Frames per second count predicted
frames.
{note}
| model | clips x frames | optimizer, precision | ms per step | frames/s |
| --- | ---: | --- | ---: | ---: |
{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tiny", action="store_true", help="every case with a small model; leave docs/ as it is"
    )
    parser.add_argument("--json", type=Path, help="a file for the numbers; docs/ is then left as it is")
    parser.add_argument("--note", default="", help="a sentence to print with the numbers")
    options = parser.parse_args()
    if options.json:
        refuse_unwritable(options.json)
    from cvae_jax.runtime import platform

    platform.prepare()
    import jax

    from cvae_jax.runtime.devices import Devices

    if jax.default_backend() == "cpu" and not options.tiny:
        fail("JAX finds no accelerator. Install the matching jax[cuda13] or jax[tpu], or try --tiny.")
    devices = Devices(jax.local_devices()[:1])
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": jax.local_devices()[0].device_kind,
        "packages": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
        "repeats": TINY_REPEATS if options.tiny else REPEATS,
        "note": options.note,
        "cases": [],
    }
    for case in tqdm(cases(), unit="case"):
        report["cases"].append(dataclasses.asdict(case) | measure(devices, case, options.tiny))
    numbers = json.dumps(report, indent=1) + "\n"
    if options.json:
        write(options.json, numbers)
    elif not options.tiny:
        write(ROOT / "docs" / "benchmarks_accelerator.json", numbers)
        page = ROOT / "docs" / "benchmarks.md"
        write(page, with_section(page.read_text(), section(report)))
    print(section(report))


if __name__ == "__main__":
    main()
