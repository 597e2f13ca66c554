"""Several runs in one table per metric: python -m cvae_jax.report.compare W1 W2 ... [--split=S] [--out=F.md].

Reads the results that evaluate.py wrote. Runs measured under different protocols are refused, naming the
difference: such numbers do not belong in one table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cvae_jax.report.columns import NOT_MEASURED, Metric, direction, metrics_of
from cvae_jax.report.results import folder_with, read
from cvae_jax.report.tables import markdown_table, number, row_name, with_interval
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import replacing

# What says which model was measured and how it draws samples, not how they were scored.
OF_THE_RUN = (
    "model",
    "noise_correlation",
    "checkpoint",
    "step",
    "epochs_trained",
    "parameters_averaged",
    "commit",
)
# The definitions of metrics that a run may have been scored without.
OPTIONAL = ("lpips", "fvd", "psnr_person", "ssim_person")
# Of what the latents carry: the heading and the digits.
LATENTS: dict[str, tuple[str, int | str]] = {
    "kl_nats_per_frame": ("KL (nats per frame)", ".3g"),
    "active_units": ("active units", 0),
    "psnr_gap": ("posterior - prior (dB)", "+.3f"),
    "correlation": ("correlation of deviations", 2),
    "diversity": ("diversity (dB)", 1),
}
BEST = "best"  # the checkpoint of the highest validation PSNR: chosen on the clips of that split


def compare(workdirs: Sequence[Path], split: str | None = None) -> str:
    """Return Markdown: for each metric a table with a line per run and a column per row of its results, and
    one of what the latents carry.

    split: None is the split that evaluate.py scores by default. A metric that only some of the runs were
    scored with is '-' for the others.

    Raises UserError where a run has no results, or two runs differ in their protocol.
    """
    results = {str(workdir): read(folder_with(workdir, split), workdir, split) for workdir in workdirs}
    (first, reference), *others = results.items()
    for name, result in others:
        refuse_other_protocol(first, reference["protocol"], name, result["protocol"])
    chosen = {result["protocol"]["checkpoint"] == BEST for result in results.values()}
    if reference["protocol"]["split"] == "validation" and len(chosen) > 1:
        raise UserError(
            "Some of these runs were scored with the checkpoint that is best on the very clips of the table, "
            "others were not; evaluate them with the same --checkpoint."
        )
    metrics = metrics_of(_mean_rows(results.values()))
    parts = [f"### {metric.title}\n\n{_table(results, metric)}\n" for metric in metrics]
    parts.append(direction(metrics) + "\n")
    if any("latents" in result for result in results.values()):
        parts.append(f"### Latents\n\n{_latents(results)}\n")
    return "\n".join(parts)


def _mean_rows(results: Iterable[dict]) -> list[dict]:
    return [row for result in results for row in result["rows"] if row.get("scene") is None]


def _table(results: dict[str, dict], metric: Metric) -> str:
    """Return the table of one metric; rows that no run has it for are left out."""
    rows = {name: {row_name(row): row for row in _mean_rows([result])} for name, result in results.items()}
    names = [name for own in rows.values() for name, row in own.items() if row.get(metric.name) is not None]
    shown = list(dict.fromkeys(names))
    lines = []
    for name, own in rows.items():
        of_run = results[name]["protocol"]
        cells = [with_interval(own.get(column, {}), metric) for column in shown]
        lines.append([name, of_run["checkpoint"], of_run["epochs_trained"], *cells])
    return markdown_table(["run", "checkpoint", "epochs", *shown], lines)


def _latents(results: dict[str, dict]) -> str:
    lines = []
    for name, result in results.items():
        carried = result.get("latents", {})
        lines.append([name, *(number(carried.get(field), digits) for field, (_, digits) in LATENTS.items())])
    return markdown_table(["run", *(title for title, _ in LATENTS.values())], lines)


def refuse_other_protocol(first: str, one: dict, second: str, other: dict) -> None:
    """Raise UserError naming the fields in which two protocols differ.

    What says which run it was may differ, and so may metrics that only one of the two was scored with.
    """
    differing = [
        field
        for field in dict.fromkeys([*one, *other])
        if field not in OF_THE_RUN
        and one.get(field) != other.get(field)
        and not (field in OPTIONAL and (_not_measured(one, field) or _not_measured(other, field)))
    ]
    if differing:
        differences = "; ".join(f"{f} is {one.get(f)!r} and {other.get(f)!r}" for f in differing)
        raise UserError(
            f"{first} and {second} were measured under different protocols ({differences}); "
            "evaluate them alike."
        )


def _not_measured(protocol: dict, field: str) -> bool:
    return protocol.get(field, NOT_MEASURED).startswith(NOT_MEASURED)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; a user's mistake ends with a sentence and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m cvae_jax.report.compare", description="Tabulate runs of one protocol."
    )
    parser.add_argument("workdirs", nargs="+", type=Path, help="workdirs that evaluate.py has scored")
    parser.add_argument(
        "--split", choices=("validation", "test"), help="default: the one that evaluate.py scores by default"
    )
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args(argv)
    try:
        text = compare(arguments.workdirs, arguments.split)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    if arguments.out:
        with replacing(arguments.out) as partial:
            partial.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
