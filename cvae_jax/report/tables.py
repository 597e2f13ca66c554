"""Results as Markdown."""

import math
from collections.abc import Sequence

from cvae_jax.report.columns import PSNR, SSIM, Metric, direction, metrics_of

LONGEST_LIST = 8  # that a protocol shows in full
_MISSING = "-"
_MARK = "†"
# Said of samples of one clip whose PSNR to each other is at least COINCIDE_DB.
SAMPLES_COINCIDE = "The samples coincide: the latent does not change the video."
COINCIDE_DB = 60.0
_OVER = {"ci95": "95 % over clips", "seed_std": "over draws"}
_WAY = "Share of gap: of the PSNR between nearest_pose (0 %) and the ceiling (100 %)."
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
    in their order; then a table for each scene; then what the latents carry. Each metric has its interval
    over clips; "over draws" is the standard deviation over sampling seeds. A metric beyond PSNR and SSIM has
    these columns only where they hold a number. Rows that see their target carry a mark and a footnote.
    Raises KeyError for a row that lacks name, sees_target, psnr or ssim.
    """
    rows = results["rows"]
    scenes = list(dict.fromkeys(row["scene"] for row in rows if row.get("scene") is not None))
    groups = [("Mean over scenes" if scenes else "Results", None)]
    groups += [(f"Scene {scene}", scene) for scene in scenes]
    protocol = results["protocol"]
    parts = [_chosen_on(protocol), "### Protocol", protocol_card(protocol)]
    for title, scene in groups:
        chosen = [row for row in rows if row.get("scene") == scene]
        if chosen:
            parts += [f"### {title}", _table(chosen)]
    parts.append(direction(metrics_of(rows)))
    if any("way_to_ceiling" in row for row in rows):
        parts.append(_WAY)
    if any(row["sees_target"] for row in rows):
        parts.append(_FOOTNOTE)
    if "latents" in results:
        parts += ["### Latents", *_latents(results["latents"])]
    stability = {name: found for name, found in results.get("stability", {}).items() if found}
    if stability:
        parts += ["### Stability", *(_STABLE[name](found) for name, found in stability.items())]
    return "\n\n".join(parts) + "\n"


def _latents(carried: dict) -> list[str]:
    sentence = (
        f"KL {number(carried['kl_nats_per_frame'], '.3g')} nats per frame; "
        f"{carried['active_units']} active units ({100 * carried['active_units_share']:.1f} %); "
        f"posterior minus prior {number(carried['psnr_gap'], '+.3f')} dB; "
        f"diversity {number(carried['diversity'], 1)} dB (PSNR between two samples of a clip)."
    )
    if carried["active_units"] and "correlation" in carried:  # earlier versions did not measure it
        sentence += (
            " Between successive frames, the posterior's deviation from the prior has a correlation of "
            f"{number(carried['correlation'], 2)}."
        )
    coincide = carried["diversity"] is not None and carried["diversity"] >= COINCIDE_DB
    return [sentence, SAMPLES_COINCIDE] if coincide else [sentence]


def _flicker(found: dict[str, float]) -> str:
    numbers = ", ".join(f"{row} {number(value, '.2e')}" for row, value in found.items())
    return f"Mean squared difference of successive frames where nobody is: {numbers}."


def _drift(found: dict[str, float]) -> str:
    numbers = ", ".join(f"{row} {number(value, '+.2f')}" for row, value in found.items())
    return f"PSNR of the last 100 frames minus that of the first 100, in dB: {numbers}."


_STABLE = {"flicker": _flicker, "drift": _drift}


def _chosen_on(protocol: dict) -> str:
    """Say whether the checkpoint was chosen on the very clips of the table."""
    if protocol.get("checkpoint") != "best":
        return f"Checkpoint `{protocol.get('checkpoint')}`: not chosen by any score."
    if protocol.get("split") == "validation":
        return "Checkpoint `best`: chosen on the very clips of this table, so its rows are optimistic."
    return f"Checkpoint `best`: chosen on the validation clips, scored on the {protocol.get('split')} clips."


def protocol_card(protocol: dict) -> str:
    """Return a protocol as a Markdown list; long lists are shown by their ends and their length."""
    return "\n".join(f"- {key}: {_plain(value)}" for key, value in protocol.items())


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        if len(items) <= LONGEST_LIST:
            return ", ".join(items)
        if len(set(items)) == 1:
            return f"{items[0]} ({len(items)} times)"
        return f"{items[0]}, {items[1]}, ..., {items[-1]} ({len(items)})"
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


def with_interval(row: dict, metric: Metric) -> str:
    """Returns a metric of a row with its interval over clips in one cell; '-' where the row has none."""
    value = number(row.get(metric.name), metric.digits)
    around = interval(row.get(f"{metric.name}_ci95"), metric.digits)
    return value if around == _MISSING else f"{value} {around}"


def _table(rows: Sequence[dict]) -> str:
    """Returns the table of the rows of one scene, or of the means over scenes."""
    header, table = [""], [[row_name(row)] for row in rows]

    def add(title: str, cells: list[str]) -> None:
        header.append(title)
        for line, cell in zip(table, cells, strict=True):
            line.append(cell)

    for metric in metrics_of(rows):
        if metric is SSIM and any("way_to_ceiling" in row for row in rows):
            share = [row.get("way_to_ceiling") for row in rows]
            add("share of gap", [_MISSING if x is None else f"{100 * x:.0f} %" for x in share])
        always = metric in (PSNR, SSIM)
        numbers = [row[metric.name] if always else row.get(metric.name) for row in rows]
        add(metric.title, [number(value, metric.digits) for value in numbers])
        for field, title in _OVER.items():
            found = [row.get(f"{metric.name}_{field}") for row in rows]
            if always or any(value is not None for value in found):
                shown = interval if field == "ci95" else _spread
                add(title, [shown(value, metric.digits) for value in found])
    return markdown_table(header, table)


def _spread(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"± {number(value, digits)}"


def interval(ends: Sequence[float] | None, form: int | str) -> str:
    """Return an interval whose ends are shown as `number` shows them; '-' for None."""
    return _MISSING if ends is None else f"[{number(ends[0], form)}, {number(ends[1], form)}]"


def number(value: int | float | None, form: int | str) -> str:
    """Return a number with so many digits, or in a format like '+.3f'; '-' where it is not finite."""
    if value is None or not math.isfinite(value):
        return _MISSING
    return f"{value:.{form}f}" if isinstance(form, int) else f"{value:{form}}"
