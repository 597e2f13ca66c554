"""Speed and memory beside PyTorch on this machine's CPU: python benchmarks/run.py [--quick] [--json F].

Both sides are live processes with the same threads and environment and take turns, A B A B; a ratio is
PyTorch's time over ours, pair by pair, and its median is quoted with the middle half. Before anything is
timed both sides must give the same losses on the parity fixture. The whole run (about half an hour) also
measures memory, start-up, compilations and the loader, and writes docs/benchmarks.md; --quick takes five
cases in a few minutes. Both say what has become slower since docs/benchmarks.json was measured on the same
kind of CPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform as machine
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

from benchmarks import regressions  # noqa: E402
from benchmarks.cases import CASES, FRAMES, LONG, Case  # noqa: E402
from benchmarks.document import GEMM_SIZE, document, table  # noqa: E402
from benchmarks.pages import refuse_unwritable, sections_of_others, with_section, write  # noqa: E402
from benchmarks.side import Side, environment, threads  # noqa: E402
from benchmarks.worker import HEIGHT, WIDTH  # noqa: E402
from cvae_jax.runtime import platform  # noqa: E402
from cvae_jax.runtime.cli import fail  # noqa: E402

FIXTURE = ROOT / "tests" / "fixtures" / "parity_small.npz"
PAUSE_SECONDS = 0.3  # lets the other side's threads fall asleep


def check(sides: list[Side]) -> dict[str, list[float]]:
    """Return each case's losses on the parity fixture; end the program where they differ."""
    answers = [side.ask(case="check", fixture=str(FIXTURE)) for side in sides]
    losses = {case: [answer[case] for answer in answers] for case in answers[0]}
    for case, (ours, theirs) in losses.items():
        if not abs(ours - theirs) <= 1e-4:
            fail(f"The two sides differ on {FIXTURE.name}, {case}: {ours} and {theirs}.", status=1)
    return losses


def compare(case: Case, sides: list[Side], pairs: int, bar: tqdm) -> dict[str, object]:
    """Return {"ours_s", "torch_s", "ratio", ...} of a case, from so many pairs of turns."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(pairs):
        for side in sides:
            time.sleep(PAUSE_SECONDS)
            seconds[side.name].append(side.ask(**case.request)["seconds"])
            bar.update()
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["torch"], strict=True)]
    return {
        "ours_s": statistics.median(seconds["ours"]),
        "torch_s": statistics.median(seconds["torch"]),
        "ratio": statistics.median(ratios),
        "ratio_middle_half": _middle_half(ratios),
        "ours_s_middle_half": _middle_half(seconds["ours"]),
        "torch_s_middle_half": _middle_half(seconds["torch"]),
        "pairs": pairs,
    }


def _middle_half(values: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def time_cases(cases: list[tuple[Case, int]], cache: Path) -> tuple[dict[str, dict], dict]:
    """Return {case: numbers}, and what is known of both sides: losses, matrix products, compilations."""
    settings = environment(cache)
    turns = sum(2 * pairs for _, pairs in cases)
    with (
        Side("ours", settings) as ours,
        Side("torch", settings) as theirs,
        tqdm(total=turns, unit="turn", dynamic_ncols=True) as bar,
    ):
        sides = [ours, theirs]
        bar.set_description("checking that both compute the same")
        known: dict = {"fixture_losses": check(sides), "compilations": {}, "gemm_gflops": {}}
        results = {}
        for case, pairs in cases:
            if case.request["case"] == "train" and not fits("torch", case.request):
                tqdm.write(f"{case.title}: left out, PyTorch does not fit into the memory")
                continue
            bar.set_description(f"{case.title} (first time)")
            first = [side.ask(**case.request) for side in sides]
            known["compilations"][case.name] = first[0]["compilations"]
            bar.set_description(case.title)
            results[case.name] = compare(case, sides, pairs, bar)
            rates = [side.ask(case="gemm", size=GEMM_SIZE)["gflops"] for side in sides]
            for side, rate in zip(sides, rates, strict=True):
                known["gemm_gflops"].setdefault(side.name, []).append(rate)
    return results, known


def gemm_share(results: dict[str, dict], rates: list[float]) -> dict[str, float]:
    """Return each case's rate as a share of the median rate of a matrix product."""
    from cvae_jax import defaults
    from cvae_jax.config import Components
    from cvae_jax.models.flops import prediction_flops, training_flops
    from cvae_jax.models.interface import init_variables

    model = Components.build(defaults.get_config()).model
    params, pixels = init_variables(model, 0, (HEIGHT, WIDTH))["params"], HEIGHT * WIDTH
    shares = {}
    own = (case for case in CASES if case.name in results and "model" not in case.request)
    for case in own:
        frames = case.request["batch"] * (case.request["frames"] - 1)
        if case.request["case"] == "train":
            done = frames * training_flops(params, pixels, case.request["teacher_forced"])
        else:
            done = frames * prediction_flops(params, pixels)
        shares[case.name] = done / results[case.name]["ours_s"] / 1e9 / statistics.median(rates)
    return shares


def memory() -> list[dict]:
    """Return the peak resident bytes of fresh processes after two training steps, one case each."""
    processes = [("ours", 10, FRAMES), ("ours", 10, LONG)]
    processes += [("torch", 2, FRAMES), ("torch", 2, LONG), ("torch", 10, FRAMES)]
    rows = []
    for name, batch, frames in tqdm(processes, desc="peak memory", unit="case"):
        request = {"case": "train", "batch": batch, "frames": frames, "teacher_forced": True}
        with tempfile.TemporaryDirectory() as cache:
            for compiled_before in (False, True)[: 2 if name == "ours" else 1]:
                row = {"side": name, "batch": batch, "frames": frames, "peak_bytes": None}
                if fits(name, request):
                    with Side(name, environment(Path(cache))) as side:
                        row["peak_bytes"] = side.ask(**request)["peak_bytes"]
                rows.append(row | {"compiles": name == "ours" and not compiled_before})
    return rows


def fits(name: str, request: dict) -> bool:
    """Return whether a training step fits into the memory left: PyTorch's grows with batch and frames."""
    needed = 0.12e9 * request["batch"] * request["frames"] if name == "torch" else 2.5e9
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return 1024 * available > needed


def start_up() -> dict[str, list[float]]:
    """Return the seconds of train.py, full size, from the command to the end of its first step."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in tqdm(range(3), desc="start-up, cold and warm", unit="pair"):
        with tempfile.TemporaryDirectory() as folder:
            empty = Path(folder) / "cache"
            seconds["cold"].append(_first_step(environment(empty), Path(folder) / "cold"))
            seconds["warm"].append(_first_step(environment(empty), Path(folder) / "warm"))
    return seconds


def _train_command(workdir: Path, *flags: str) -> list[str]:
    config = ["--config=configs/monotonic.py", "--config.batch_size=2", f"--workdir={workdir}"]
    return [sys.executable, "train.py", *config, *flags]


def _first_step(settings: dict[str, str], workdir: Path) -> float:
    started = time.monotonic()
    process = subprocess.Popen(
        _train_command(workdir), cwd=ROOT, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seen = b""
    try:
        while time.monotonic() - started < 600 and (part := os.read(process.stderr.fileno(), 4096)):
            seen += part
            # The bar without the announcement of the compilation: the first step is done.
            after = seen.rpartition(b"compiling the training step")[2]
            if b"compiling" in seen and re.search(rb"\| +[01]/\d+ \[[^]]*step/s\]|\| +1/", after):
                return time.monotonic() - started
    finally:
        process.kill()
        process.wait()
    fail(f"train.py took no first step: {seen.decode(errors='replace')[-300:]}", status=1)


def loader(cache: Path) -> dict[str, float]:
    """Return what the second full-size epoch of train.py on the embedded clips spent waiting for batches."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            _train_command(Path(folder) / "w", "--config.num_epochs=2"),
            cwd=ROOT,
            env=environment(cache),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            fail(f"train.py ended early: {done.stderr[-300:]}", status=1)
        row = json.loads((Path(folder) / "w" / "metrics.jsonl").read_text().splitlines()[1])
    keys = ("input_seconds", "train_seconds")
    return {key: row[key] for key in keys} | {"idle_share": row[keys[0]] / row[keys[1]]}


def describe(*more: str) -> dict[str, object]:
    """Return the machine and the versions, those of `more` packages included."""
    packages = ("jax", "jaxlib", "flax", "torch", "numpy", *more)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    core = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = core.get("flags", "").split()
    vectors = [name for name in ("avx512f", "avx2") if name in flags]
    kind = [core.get("model name", machine.processor())]
    if "cpu family" in core:  # virtual machines hide the generation in the name
        kind.append(f"family {core['cpu family']} model {core['model']}")
    return {
        "cpu": ", ".join(kind),
        "vectors": vectors[0] if vectors else "",
        "threads": threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": machine.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "cpu_flags": platform.CPU_FLAGS,
        "allocator": "=".join(platform.ALLOCATOR),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five cases, a few minutes, no document")
    parser.add_argument("--json", type=Path, help="where the numbers go; default docs/benchmarks.json")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        fail("PyTorch is not installed: run make bench, or pip install -r requirements-dev.txt.")
    if not options.quick and options.json is None:
        options.json = ROOT / "docs" / "benchmarks.json"
    if not Path("/proc/meminfo").exists():
        fail("The comparison reads /proc and needs Linux.")
    if options.json is not None:
        refuse_unwritable(options.json)
    pairs = [(case, case.quick_pairs if options.quick else case.pairs) for case in CASES]
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary)
        report, known = time_cases([(case, n) for case, n in pairs if n], cache)
        changes = regressions.against_committed(report, describe())  # before the file is replaced
        if options.json is not None:  # the rest takes long
            write(options.json, json.dumps(report, indent=1) + "\n")
        if not options.quick:
            report |= {
                "_machine": describe(),
                **{f"_{name}": value for name, value in known.items()},
                "_gemm_share": gemm_share(report, known["gemm_gflops"]["ours"]),
                "_memory": memory(),
                "_start_up": start_up(),
                "_loader": loader(cache),
            }
            path = ROOT / "docs" / "benchmarks.md"
            text = document(report)
            for section in sections_of_others(path.read_text()):
                text = with_section(text, section)
            write(path, text)
    if options.json is not None:
        write(options.json, json.dumps(report, indent=1) + "\n")
    print(table({name: value for name, value in report.items() if not name.startswith("_")}))
    print("\n".join(["", *changes]))


if __name__ == "__main__":
    main()
