"""Results as Markdown."""

import math
from collections.abc import Sequence

_MISSING = "-"
_MARK = "†"
_FOOTNOTE = f"{_MARK} sees the frame it predicts, or the true frame before it: not a prediction."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table with padded cells.

    The first column is aligned to the left, the others to the right. Cells are shown by `str`; a
    vertical bar in one is escaped.
    Raises ValueError for a row that is not as long as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"the row {list(row)} does not fit the header {list(header)}.")
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def join(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([join(lines[0]), join(rule), *(join(line) for line in lines[1:])])


def results_table(results: dict) -> str:
    """Returns the contents of eval/results.json as Markdown.

    First whether the checkpoint was chosen on these clips, and the protocol; then the rows without a scene,
    in their order; then a table for each scene; then what the latents carry. PSNR is in dB, to two digits,
    SSIM to three, each with its interval over clips; "over draws" is the standard deviation over
    sampling seeds. Rows that see their target carry a mark and a footnote.
    Raises KeyError for a row that lacks name, sees_target, or a metric, its interval or the spread.
    """
    rows = results["rows"]
    scenes = list(dict.fromkeys(row["scene"] for row in rows if row.get("scene") is not None))
    groups = [("Mean over scenes" if scenes else "Results", None)]
    groups += [(f"Scene {scene}", scene) for scene in scenes]
    protocol = results["protocol"]
    parts = [_chosen_on(protocol), "### Protocol", _protocol_card(protocol)]
    for title, scene in groups:
        chosen = [_cells(row) for row in rows if row.get("scene") == scene]
        if chosen:
            over = ("95 % over clips", "over draws")
            header = ("", "PSNR (dB)", *over, "SSIM", *over)
            parts += [f"### {title}", markdown_table(header, chosen)]
    if any(row["sees_target"] for row in rows):
        parts.append(_FOOTNOTE)
    if "latents" in results:
        carried = results["latents"]
        parts += [
            "### Latents",
            f"KL {_number(carried['kl_nats_per_frame'], '.3g')} nats per frame; "
            f"{carried['active_units']} active units ({100 * carried['active_units_share']:.1f} %); "
            f"posterior minus prior {_number(carried['psnr_gap'], '+.3f')} dB.",
        ]
    return "\n\n".join(parts) + "\n"


def _chosen_on(protocol: dict) -> str:
    """Say whether the checkpoint was chosen on the very clips of the table."""
    if protocol.get("checkpoint") != "best":
        return f"Checkpoint `{protocol.get('checkpoint')}`: not chosen by any score."
    if protocol.get("split") == "validation":
        return "Checkpoint `best`: chosen on the very clips of this table, so its rows are optimistic."
    return f"Checkpoint `best`: chosen on the validation clips, scored on the {protocol.get('split')} clips."


def _protocol_card(protocol: dict) -> str:
    return "\n".join(f"- {key}: {_plain(value)}" for key, value in protocol.items())


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _MISSING if value is None else str(value)


def row_name(row: dict) -> str:
    """Returns a row's name as tables show it: with N and the temperature, marked if it sees its target."""
    name = row["name"]
    if name == "prior_best_of_N":
        name = f"prior_best_of_{row['n']}"
    if name == "prior_scaled":
        name = f"prior_scaled_{row['temperature']:g}"
    return f"{name} {_MARK}" if row["sees_target"] else name


def with_interval(row: dict, metric: str, digits: int = 2) -> str:
    """Returns a metric of a row with its interval over clips in one cell."""
    interval = _interval(row[f"{metric}_ci95"], digits)
    number = _number(row[metric], digits)
    return number if interval == _MISSING else f"{number} {interval}"


def _cells(row: dict) -> list[str]:
    cells = [row_name(row)]
    for metric, digits in (("psnr", 2), ("ssim", 3)):
        spread = row[f"{metric}_seed_std"]
        cells += [
            _number(row[metric], digits),
            _interval(row[f"{metric}_ci95"], digits),
            _MISSING if spread is None else f"± {_number(spread, digits)}",
        ]
    return cells


def _interval(interval: Sequence[float] | None, digits: int) -> str:
    if interval is None:
        return _MISSING
    return f"[{_number(interval[0], digits)}, {_number(interval[1], digits)}]"


def _number(value: int | float | None, form: int | str) -> str:
    """Return a number with so many digits, or in a format like '+.3f'; '-' where it is not finite."""
    if value is None or not math.isfinite(value):
        return _MISSING
    return f"{value:.{form}f}" if isinstance(form, int) else f"{value:{form}}"
