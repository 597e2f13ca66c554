"""What this machine's accelerator reaches: python benchmarks/accelerator.py [--tiny] [--minutes=8].

One device, no network. In this order: a step of the report's CVAE in PyTorch, where it is installed for the
device; the rates of a matrix product and of a copy; training steps of that CVAE, the multiscale model and
SVG-LP in float32 and bfloat16, and what one spends its time on; rollouts of 630 frames; and up to 90 seconds
of training on `dancer`, with its PSNR. What --minutes does not suffice for is left out and named, as is what
fails. The numbers go to docs/benchmarks_accelerator.json and the section "Accelerator" of docs/benchmarks.md,
or to the file of --json. --tiny tries one case of each kind with a small model, and leaves docs/ as it is, to
test the script on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

from benchmarks.cases import REPEATS, TINY_REPEATS  # noqa: E402
from benchmarks.pages import ACCELERATOR_HEADING, refuse_unwritable, with_section, write  # noqa: E402
from cvae_jax.runtime.cli import fail  # noqa: E402

MINUTES, TRAINING_SECONDS = 8.0, 90.0
# Share of the time after which PyTorch is ended, and no more steps, rollouts and training are begun.
TORCH_UNTIL, STEPS_UNTIL, ROLLOUTS_UNTIL, TRAINING_UNTIL = 0.15, 0.55, 0.65, 0.7
ROLLOUTS = (("report", 1), ("recommended", 1), ("recommended", 32), ("report", 32), ("recommended", 256))
FRAMES, TINY_FRAMES = 630, 4


class Session:
    """The cases of a run of this script: what they found, and which failed or were left out."""

    def __init__(self, report: dict[str, Any], minutes: float, bar: tqdm, save: Callable[[], None]):
        self._report, self._bar, self._save = report, bar, save
        self._started, self._seconds = time.monotonic(), 60 * minutes

    def left(self, until: float) -> float:
        """Return the seconds until this share of the time is over."""
        return until * self._seconds - (time.monotonic() - self._started)

    def run(self, name: str, until: float, measure: Callable[[], Any]) -> Any:
        """Return measure(); None where the time is over, or where it fails."""
        self._bar.set_description(name)
        found = None
        if self.left(until) < 0:
            self._report["left_out"].append(name)
        else:
            try:
                found = measure()
            except Exception as error:  # out of memory, for one: the other cases are still worth having
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                self._report["failed"].append(f"{name} ({reason[:200]})")
        self._bar.update()
        return found

    def add(self, name: str, until: float, measure: Callable[[], list], to: str) -> None:
        """Add the rows of measure() to a list of the report, and save it."""
        self._report[to] += self.run(name, until, measure) or []
        self._save()


def collect(minutes: float, tiny: bool, report: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure everything that the time suffices for, and add it to the report; save: called after each."""
    from benchmarks import accelerator_cases as cases

    steps, rollouts, frames = cases.cases(), ROLLOUTS, FRAMES
    if tiny:
        steps, rollouts, frames = cases.one_of_each(), ROLLOUTS[:2], TINY_FRAMES
    with tqdm(total=len(steps) + len(rollouts) + 3, unit="case", dynamic_ncols=True) as bar:
        session = Session(report, minutes, bar, save)
        # First, and in a process of its own: JAX takes the memory of the device.
        limit = session.left(TORCH_UNTIL)
        session.add("PyTorch", TORCH_UNTIL, lambda: cases.torch_steps(limit, tiny), "torch")

        import jax

        from cvae_jax.runtime.devices import Devices

        devices = Devices(jax.local_devices()[:1])
        report["ceilings"] = session.run("matrix product and copy", 1, lambda: cases.ceilings(tiny))
        for case in steps:
            name = f"{case.title}, {case.batch} x {case.frames}, {case.precision}"

            def step(case: Any = case, name: str = name) -> list[dict]:
                timed = cases.TrainingStep(devices, case, tiny)
                row = dataclasses.asdict(case) | timed.measure()
                if case in (steps[0], cases.cases()[1]):
                    report["profile"] = cases.profile(lambda: timed.seconds(3))
                    report["profiled"] = name
                return [row]

            session.add(name, STEPS_UNTIL, step, "cases")
        for recipe, number in rollouts:
            name = f"rollout of {number} {'clips' if number > 1 else 'clip'}, {recipe}"
            rolled = lambda r=recipe, n=number: [cases.rollout(devices, r, n, frames, tiny)]  # noqa: E731
            session.add(name, ROLLOUTS_UNTIL, rolled, "rollouts")
        rate = [row for row in report["cases"] if row["recipe"] == "recommended" and row["batch"] == 8]
        seconds = min(TRAINING_SECONDS, 60 * minutes / 5)
        report["training"] = session.run(
            "training on dancer",
            TRAINING_UNTIL if rate else -1,
            lambda: cases.train(rate[0]["frames_per_second"], seconds, devices, tiny),
        )


def section(report: dict) -> str:
    """Return the section of docs/benchmarks.md."""
    rows = []
    for row in report["cases"]:
        of = f"{row['optimizer']}, {row['precision']}"
        mfu = "-" if row.get("mfu") is None else f"{row['mfu']:.1%}"
        rows.append(
            f"| {row['title']} | {row['batch']} x {row['frames']} | {of} | {_spread(row['ms'])} "
            f"| {row['frames_per_second']:,.0f} | {mfu} |"
        )
    for row in report.get("torch", []):
        rows.append(f"| {row['title']} | {row['batch']} x 16 | adam, bfloat16 | {_spread(row['ms'])} | | |")
    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    rounds, repeats = len(report["cases"][0]["ms"]), report["repeats"]
    parts = [
        f"""{ACCELERATOR_HEADING}

Written by `python benchmarks/accelerator.py` on {report["date"]}; the numbers are in
[benchmarks_accelerator.json](benchmarks_accelerator.json). One {report["device"]}, {packages}. The table
gives the time of a training step, with the batch already on the device: the median of {rounds} rounds of
{repeats} steps, with the minimum and maximum in parentheses. Frames are 32 x 64, those of SVG 64 x 64. Frames
per second count predicted frames. MFU is the share of the device's peak that the model's operations take,
not counting what is computed again in the backward pass."""
    ]
    if report["note"]:
        parts.append(report["note"])
    if report.get("ceilings"):
        best = report["ceilings"]
        parts.append(
            f"A matrix product reaches {best['float32_flops_per_second'] / 1e12:.3g} TFLOP/s in float32 and "
            f"{best['bfloat16_flops_per_second'] / 1e12:.3g} TFLOP/s in bfloat16, and a copy "
            f"{best['copied_bytes_per_second'] / 1e9:,.3g} GB/s."
        )
    head = "| model | clips x frames | optimizer, precision | ms per step | frames/s | MFU |\n"
    parts.append(head + "| --- | ---: | --- | ---: | ---: | ---: |\n" + "\n".join(rows))
    if report.get("rollouts"):
        lines = [
            f"| {row['recipe']} | {row['clips']} x {row['frames']} | {row['seconds']:.3g} "
            f"| {row['frames_per_second']:,.0f} |"
            for row in report["rollouts"]
        ]
        head = "| prior rollout | clips x frames | seconds | frames/s |\n| --- | ---: | ---: | ---: |\n"
        parts.append(head + "\n".join(lines))
    if report.get("profile"):
        lines = [f"| `{row['name']}` | {row['share']:.1%} |" for row in report["profile"]]
        parts.append(
            f"What a step spends its time on ({report['profiled']}):\n\n"
            "| operation | share |\n| --- | ---: |\n" + "\n".join(lines)
        )
    if report.get("training"):
        own = report["training"]
        parts.append(
            f"{own['train_seconds']:.0f} seconds of training the recommended model on `dancer` "
            f"({own['clips']:,} clips, {own['compile_seconds']:.0f} s of compilation apart) reached "
            f"{own['val_psnr_prior']:.2f} dB on the validation clip with single draws from the prior."
        )
    if report.get("left_out"):
        parts.append(f"Left out for lack of time: {'; '.join(report['left_out'])}.")
    if report.get("failed"):
        parts.append(f"Failed: {'; '.join(report['failed'])}.")
    return "\n\n".join(parts) + "\n"


def _spread(milliseconds: list[float]) -> str:
    low, high = min(milliseconds), max(milliseconds)
    return f"{statistics.median(milliseconds):.3g} ({low:.3g} - {high:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a trial with small models; leave docs/ as it is")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long it may take; default 8")
    parser.add_argument("--json", type=Path, help="a file for the numbers; docs/ is then left as it is")
    parser.add_argument("--note", default="", help="a sentence to print with the numbers")
    options = parser.parse_args()
    if not options.minutes > 0:
        fail(f"--minutes is {options.minutes}; give a positive number.")
    if options.json:
        refuse_unwritable(options.json)
    from cvae_jax.runtime import platform

    platform.prepare()
    if not options.tiny:
        refuse_cpu()
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "packages": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
        "note": options.note,
        **{name: [] for name in ("cases", "torch", "rollouts", "left_out", "failed")},
    }
    file = options.json or (None if options.tiny else ROOT / "docs" / "benchmarks_accelerator.json")

    def save() -> None:
        if file is not None and report["cases"]:
            write(file, json.dumps(report, indent=1) + "\n")

    collect(options.minutes, options.tiny, report, save)
    import jax

    report["device"] = jax.local_devices()[0].device_kind
    report["repeats"] = TINY_REPEATS if options.tiny else REPEATS
    if not report["cases"]:
        fail(f"No step was timed. {'; '.join(report['failed']) or 'Give more --minutes'}.", status=1)
    save()
    if file is not None and not options.json:
        page = ROOT / "docs" / "benchmarks.md"
        write(page, with_section(page.read_text(), section(report)))
    print(section(report))


def refuse_cpu() -> None:
    """End the program where JAX finds no accelerator, asked in a process that gives the device back."""
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    done = subprocess.run(ask, capture_output=True, text=True)
    if done.stdout.split()[-1:] in ([], ["cpu"]):
        fail("JAX finds no accelerator. Install the matching jax[cuda13] or jax[tpu], or try --tiny.")


if __name__ == "__main__":
    main()
