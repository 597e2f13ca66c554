"""Several runs in one table: python -m cvae_jax.report.compare W1 W2 ... [--split=test] [--out=F.md].

Reads the results that evaluate.py wrote. Runs measured under different protocols are refused, naming the
difference: such numbers do not belong in one table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cvae_jax.report.tables import markdown_table, row_name, with_interval
from cvae_jax.runtime import cli
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import replacing

# What says which model was measured, not how.
OF_THE_RUN = ("model", "checkpoint", "step", "epochs_trained", "parameters_averaged", "commit")
BEST = "best"  # the checkpoint of the highest validation PSNR: chosen on the clips of that split


def compare(workdirs: Sequence[Path], split: str = "validation") -> str:
    """Return a Markdown table: a line per run, a column per row of its results, PSNR in dB with interval.

    Raises UserError where a run has no results, or two runs differ in their protocol.
    """
    results = {str(workdir): _read(workdir, split) for workdir in workdirs}
    (first, reference), *others = results.items()
    for name, result in others:
        refuse_other_protocol(first, reference["protocol"], name, result["protocol"])
    chosen = {result["protocol"]["checkpoint"] == BEST for result in results.values()}
    if split == "validation" and len(chosen) > 1:
        raise UserError(
            "Some of these runs were scored with the checkpoint that is best on the very clips of the table, "
            "others were not; evaluate them with the same --checkpoint."
        )
    rows = {
        name: {row_name(row): row for row in result["rows"] if row.get("scene") is None}
        for name, result in results.items()
    }
    columns = list(dict.fromkeys(column for own in rows.values() for column in own))
    lines = []
    for name, own in rows.items():
        cells = [with_interval(own[column], "psnr") if column in own else "-" for column in columns]
        of_run = results[name]["protocol"]
        lines.append([name, of_run["checkpoint"], of_run["epochs_trained"], *cells])
    header = ["run", "checkpoint", "epochs", *(f"{column} (dB)" for column in columns)]
    return markdown_table(header, lines) + "\n"


def _read(workdir: Path, split: str) -> dict:
    folder = "eval" if split == "validation" else f"eval_{split}"
    path = workdir / folder / "results.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        flag = "" if split == "validation" else f" --split={split}"
        raise UserError(
            f"There is no {path}; run {cli.command('evaluate')} --workdir={workdir}{flag} first."
        ) from None
    except ValueError:
        raise UserError(
            f"{path} is not whole; run {cli.command('evaluate')} --workdir={workdir} again."
        ) from None


def refuse_other_protocol(first: str, one: dict, second: str, other: dict) -> None:
    """Raise UserError naming the fields in which two protocols differ, but for what says which run it was."""
    differing = [
        field
        for field in dict.fromkeys([*one, *other])
        if field not in OF_THE_RUN and one.get(field) != other.get(field)
    ]
    if differing:
        differences = "; ".join(f"{f} is {one.get(f)!r} and {other.get(f)!r}" for f in differing)
        raise UserError(
            f"{first} and {second} were measured under different protocols ({differences}); "
            "evaluate them alike."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; a user's mistake ends with a sentence and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m cvae_jax.report.compare", description="Tabulate runs of one protocol."
    )
    parser.add_argument("workdirs", nargs="+", type=Path, help="workdirs that evaluate.py has scored")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
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
