"""The tables of `benchmarks/run.py`, and the page docs/benchmarks.md."""

from __future__ import annotations

import statistics

from benchmarks.cases import CASES

GEMM_SIZE = 2048


def table(results: dict[str, dict]) -> str:
    """Return the comparison as Markdown."""
    titles = {case.name: case.title for case in CASES}
    lines = [
        "| 32 x 64, 16 frames | ours (s) | PyTorch (s) | ratio | middle half | pairs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, r in results.items():
        low, high = r["ratio_middle_half"]
        lines.append(
            f"| {titles[name]} | {r['ours_s']:.3g} | {r['torch_s']:.3g} | {r['ratio']:.2f} | "
            f"{low:.2f} - {high:.2f} | {r['pairs']} |"
        )
    return "\n".join(lines)


def document(report: dict) -> str:
    """Return docs/benchmarks.md."""
    here = report["_machine"]
    gib = lambda x: "not run, does not fit" if x is None else f"{x / 1e9:.2f} GB"  # noqa: E731
    spread = lambda x: f"{statistics.median(x):.1f} s ({min(x):.1f} - {max(x):.1f})"  # noqa: E731
    rates = {side: statistics.median(values) for side, values in report["_gemm_gflops"].items()}
    packages = ", ".join(f"{name} {version}" for name, version in here["packages"].items())
    flags = " ".join(f"{name}={value}" for name, value in here["cpu_flags"].items())
    cold, warm = (spread(report["_start_up"][kind]) for kind in ("cold", "warm"))
    memory_rows = [
        f"| {'ours' if row['side'] == 'ours' else 'PyTorch'}, batch {row['batch']}, {row['frames']} frames"
        f"{', compilation included' if row['compiles'] else ''} | {gib(row['peak_bytes'])} |"
        for row in report["_memory"]
    ]
    shares = [
        f"| {case.title} | {report['_gemm_share'][case.name]:.0%} |"
        for case in CASES
        if case.name in report["_gemm_share"]
    ]
    compiled = sum(report["_compilations"].get(name, 0) for name in ("train_tf_b2", "train_ar_b2"))
    left_out = ", ".join(case.title for case in CASES if case.name not in report)
    note = f"\nPyTorch did not fit into the free memory for: {left_out}.\n" if left_out else ""
    idle = report["_loader"]
    return f"""# Benchmarks

Written by `make bench` on {here["date"]}; the numbers are in [benchmarks.json](benchmarks.json), what they
mean in [performance.md](performance.md).

{here["cpu"]} ({here["vectors"]}), {here["threads"]} threads, {here["memory_gib"]} GiB,
Python {here["python"]}, {packages}. Both sides: the same threads, `{here["allocator"]}`. Ours:
`{flags}`.
Times vary on a shared machine, so each ratio is of one pair of turns (PyTorch / ours; above 1 is faster for
ours), and the tables give the median and the middle half of the pairs. Before the timing both sides gave the
same losses on the parity fixture.

## Speed

The report's model at full size (128, 32, 12, 192) and the multiscale model of `configs/recommended.py`,
trained with Adam and without augmentation, in float32. Training clips of the multiscale model have one
context frame and one predicted frame.

{table({case.name: report[case.name] for case in CASES if case.name in report})}
{note}
A {GEMM_SIZE} x {GEMM_SIZE} float32 matrix product runs at {rates["ours"]:.0f} GFLOP/s in XLA and
{rates["torch"]:.0f} GFLOP/s in PyTorch. Of XLA's rate the training step reaches (own count of the model's
operations, `cvae_jax/models/flops.py`, as direct convolutions; Winograd's algorithm takes fewer, so the
program itself runs at a lower rate):

| | share |
| --- | ---: |
{chr(10).join(shares)}

## Memory

Peak resident memory of a fresh process after two training steps.

| | peak |
| --- | ---: |
{chr(10).join(memory_rows)}

## Start

From the command `python train.py --config=configs/monotonic.py --config.batch_size=2` to the end of the first
step, median and range of {len(report["_start_up"]["cold"])}: {cold} with nothing compiled before, {warm} the
second time. Compilations for teacher-forced and autoregressive steps of batch 2 together: {compiled}.

## Input

In the second epoch of that run the loop waited {idle["input_seconds"]:.3f} s of
{idle["train_seconds"]:.1f} s for batches ({idle["idle_share"]:.2%}).
"""
