"""Our loader beside the obvious PyTorch loader, and whether a step ever waits for it.

    python benchmarks/loader.py [--quick] [--folder F] [--frames N] [--json J]

Renders the data set `dancer` into PNGs in the lab's layout (kept in F), times how our `frame_folder` prepares
them, and lets live processes take turns: PyTorch reading PNGs with 0 and with 2 workers, and ours. Ratios are
taken round by round. Writes the section "Loader" of docs/benchmarks.md and docs/benchmarks_loader.json;
--quick takes three rounds, trains nothing and prints.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.loader_worker import BATCH, FRAMES  # noqa: E402
from benchmarks.pages import LOADER_HEADING, refuse_unwritable, with_section, write  # noqa: E402
from benchmarks.run import describe  # noqa: E402
from benchmarks.side import Side, environment, threads  # noqa: E402
from configs import quickstart  # noqa: E402
from cvae_jax.data.clips import Recording  # noqa: E402
from cvae_jax.data.datasets import dancer, frame_folder  # noqa: E402
from cvae_jax.runtime.cli import fail, guarded  # noqa: E402

LAB_FRAMES, LAB_VALIDATION = 23410, 630
ROUNDS, QUICK_ROUNDS = 7, 3
WORKERS = (0, 2)  # of the DataLoader
HOST = {"plain NumPy": None, "grain, no thread": 0, "grain, 1 thread": 1, "grain, 2 threads": 2}
STEPS = {20.0: 50, 4.0: 250}  # milliseconds of the stand-in for a step (quickstart's takes 50): how many
QUICKSTART = ("--config=configs/quickstart.py", "--config.num_epochs=2", "--config.eval.every=9")


def render(folder: Path, frames: int) -> Path:
    """Return a folder of so many training frames and labels of `dancer` as PNGs, made if it is not there."""
    made = folder / f"png_{frames}"
    if made.is_dir():
        return made
    recordings = dancer.load(
        data_dir=None,
        cache_dir=str(folder / "painted"),
        frame_size=None,
        options=dancer.Options(
            train_frames=frames,
            validation_frames=max(2, round(frames * LAB_VALIDATION / LAB_FRAMES)),
            test_sequences=0,
        ),
    )
    work = Path(tempfile.mkdtemp(prefix=f".{made.name}.", dir=folder))
    try:
        for split, (_, frame_part, label_part) in frame_folder.FOLDERS.items():
            save(recordings[split][0], work / frame_part, work / label_part)
        work.rename(made)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return made


def save(recording: Recording, frames: Path, labels: Path) -> None:
    """Write a recording's images as frame0.png ... into two new folders."""
    images = []
    for folder, video in ((frames, recording.frames), (labels, recording.labels)):
        folder.mkdir(parents=True)
        images += [(folder / f"frame{t}.png", pixels) for t, pixels in enumerate(video)]
    bar = tqdm(total=len(images), desc=f"Writing {recording.name}", unit="file", leave=False)
    with bar, concurrent.futures.ThreadPoolExecutor(threads()) as pool:
        for _ in pool.map(lambda image: Image.fromarray(image[1]).save(image[0]), images):
            bar.update()


def prepare(folder: Path, cache: Path) -> dict[str, float]:
    """Return the seconds of our preparation of a folder into an empty cache, and of the next start."""
    seconds = {}
    for kind in ("first", "again"):
        started = time.monotonic()
        frame_folder.load(data_dir=str(folder), cache_dir=str(cache), frame_size=None)
        seconds[kind] = time.monotonic() - started
    return seconds


def measure(folder: Path, cache: Path, rounds: int, turn: float) -> dict[str, dict]:
    """Return the rates of all loaders in clips per second, a list over rounds each, and of the steps."""
    settings = environment(cache / "compiled")
    arguments = (str(folder), str(cache))
    found: dict[str, dict] = {"loaders": {}, "host": {}, "steps": {}}

    def rate(kind: str, name: str, side: Side, **request: object) -> None:
        answer = side.ask(**request)
        found[kind].setdefault(name, []).append(answer["clips"] / answer["seconds"])

    with (
        Side("ours", settings, "benchmarks.loader_worker", arguments) as ours,
        Side("torch", settings, "benchmarks.loader_worker", arguments) as torch,
        tqdm(total=rounds, desc="loaders take turns", unit="round", dynamic_ncols=True) as bar,
    ):
        ours.ask(case="epochs", seconds=turn)
        for _ in range(rounds):
            for workers in WORKERS:
                rate("loaders", f"PyTorch, {workers} workers", torch, case="epochs", workers=workers)
                rate("loaders", f"ours, beside {workers} workers", ours, case="epochs", seconds=turn)
            for name, read_threads in HOST.items():
                rate("host", name, ours, case="host", seconds=turn / 2, read_threads=read_threads)
            for milliseconds, number in STEPS.items():
                answer = ours.ask(case="steps", milliseconds=milliseconds, number=number)
                found["steps"].setdefault(str(milliseconds), []).append(answer)
            bar.update()
    return found


def train(cache: Path) -> dict[str, float]:
    """Return the seconds of the second epoch of train.py, and those it waited for batches."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "train.py", *QUICKSTART, f"--workdir={folder}/w"],
            cwd=ROOT,
            env=environment(cache / "compiled"),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            fail(f"train.py ended early: {done.stderr[-300:]}", status=1)
        row = json.loads((Path(folder) / "w" / "metrics.jsonl").read_text().splitlines()[1])
    return {key: row[key] for key in ("train_seconds", "input_seconds")}


def spread(values: list[float], form: str) -> str:
    """Return the median of values with their least and largest."""
    low, middle, high = (format(x, form) for x in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} - {high})"


def ratios(found: dict[str, dict], workers: int) -> list[float]:
    """Return, round by round, our rate over PyTorch's with so many workers."""
    names = (f"ours, beside {workers} workers", f"PyTorch, {workers} workers")
    pairs = zip(*(found["loaders"][name] for name in names), strict=True)
    return [ours / theirs for ours, theirs in pairs]


def tables(found: dict[str, dict]) -> str:
    """Return what was measured as Markdown: median (least - largest) over the rounds."""
    loaders, host = found["loaders"], found["host"]
    ours = loaders[f"ours, beside {WORKERS[0]} workers"] + loaders[f"ours, beside {WORKERS[1]} workers"]
    lines = ["| loader | clips/s | ours / this |", "| --- | ---: | ---: |"]
    lines += [
        f"| PyTorch, {n} workers | {spread(loaders[f'PyTorch, {n} workers'], '.0f')} | "
        f"{spread(ratios(found, n), '.0f')} |"
        for n in WORKERS
    ]
    lines += [f"| ours, on the device | {spread(ours, '.0f')} | 1 |", ""]
    plain = host["plain NumPy"]
    lines += ["| ours, host only | clips/s | of plain NumPy |", "| --- | ---: | ---: |"]
    for name, rates in host.items():
        share = [rate / other for rate, other in zip(rates, plain, strict=True)]
        lines.append(f"| {name} | {spread(rates, '.0f')} | {spread(share, '.2f')} |")
    lines += ["", "| step | fed / resident time | waiting for `next` |", "| --- | ---: | ---: |"]
    for milliseconds, turns in found["steps"].items():
        longer = [turn["fed"] / turn["resident"] for turn in turns]
        waited = [turn["waited"] / turn["fed"] for turn in turns]
        lines.append(f"| {float(milliseconds):g} ms | {spread(longer, '.3f')} | {spread(waited, '.1%')} |")
    return "\n".join(lines)


def section(report: dict) -> str:
    """Return the section of docs/benchmarks.md."""
    here, prepared, row = report["machine"], report["prepare"], report["train"]
    packages = ", ".join(f"{name} {version}" for name, version in here["packages"].items())
    trained, waited = row["train_seconds"], row["input_seconds"]
    return f"""{LOADER_HEADING}

Written by `make bench-loader` on {here["date"]}; the numbers are in
[benchmarks_loader.json](benchmarks_loader.json). {here["cpu"]}, {here["threads"]} threads, no GPU,
{packages}.
Times wander where a machine is shared, so sides take turns and ratios are taken round by round; all numbers
are the median with the least and the largest of {report["rounds"]} rounds.

{report["frames"]} frames and labels of `dancer` as PNGs of 32 x 64 in the lab's layout, clips of {FRAMES},
batches of {BATCH}, shuffled. PyTorch: a `Dataset` that opens a clip's {2 * FRAMES} PNGs with Pillow, to
float / 255, in a `DataLoader`; whole epochs, files in the system's cache. Ours: `TrainLoader`, uint8, placed
on the device. Ours prepares the folder once, in {prepared["first"]:.1f} s; later starts check and read it in
{prepared["again"]:.1f} s.

{tables(report)}

Whether a step waits: a stand-in of so many milliseconds (it reads its batch and multiplies matrices) is fed
by the loader as in `train.py`, and then the same batch again and again. The first column is the time of the
one over the other; the second is what the host spends in `next`, while the step before is still running; on
a CPU copying and computing share the cores.

`train.py {" ".join(QUICKSTART)}` (batches of {quickstart.get_config().batch_size}):
in the second epoch the loop waited {waited:.2f} s of {trained:.1f} s for batches and what goes with them
({waited / trained:.2%}).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, no training, no document")
    parser.add_argument("--folder", type=Path, default=ROOT / "data" / "bench_loader", help="kept images")
    parser.add_argument("--frames", type=int, default=LAB_FRAMES, help="training frames to render")
    parser.add_argument("--json", type=Path, help="where the numbers go; default docs/benchmarks_loader.json")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        fail("PyTorch is not installed: run make bench-loader, or pip install -r requirements-dev.txt.")
    if options.frames < FRAMES:
        fail(f"--frames={options.frames} is too few for one clip; give at least {FRAMES}.")
    if not options.quick and options.json is None:
        options.json = ROOT / "docs" / "benchmarks_loader.json"
    if options.json is not None:
        refuse_unwritable(options.json)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--folder={options.folder} cannot be made ({error.strerror}); give a folder of yours.")
    rounds, turn = (QUICK_ROUNDS, 0.1) if options.quick else (ROUNDS, 1.0)
    folder = guarded(lambda: render(options.folder.absolute(), options.frames))
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary)
        report = {"frames": options.frames, "rounds": rounds, "prepare": prepare(folder, cache)}
        report |= measure(folder, cache, rounds, turn)
        if not options.quick:
            report |= {"train": train(cache), "machine": describe("grain", "pillow")}
            path = ROOT / "docs" / "benchmarks.md"
            write(path, with_section(path.read_text(), section(report)))
    if options.json is not None:
        write(options.json, json.dumps(report, indent=1) + "\n")
    print(tables(report))


if __name__ == "__main__":
    main()
