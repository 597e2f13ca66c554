"""The tables of a study's report."""

from __future__ import annotations

from ml_collections import ConfigDict

from cvae_jax.report import columns
from cvae_jax.report.tables import interval, markdown_table, number
from cvae_jax.study.summary import OF_THE_PRIOR

_HEADER = (
    "variant",
    "seeds",
    "prior (dB)",
    "95 %",
    "minus {}",
    "95 %",
    "posterior † (dB)",
    "posterior - prior",
    "SSIM, prior",
    "KL (nats/frame)",
    "active units",
    "diversity (dB)",
)


def results_table(study: ConfigDict, rows: list[dict]) -> str:
    """Return the rows of `summarise` as a Markdown table."""
    header = [cell.format(study.compare) for cell in _HEADER]
    if study.steps:
        header[6:6] = ["minus the row above", "95 %"]
    if not study.compare:
        del header[4:6]
    lines = []
    for row in rows:
        name = row["variant"] + (f" ({row['stopped']} stopped: not finite)" if row["stopped"] else "")
        cells = [name, len(row["seeds"]), *_with_interval(row.get("prior"))]
        if study.compare:
            cells += _with_interval(row.get("difference"), sign="+")
        if study.steps:
            cells += _with_interval(row.get("step"), sign="+")
        lines.append(
            cells
            + [
                _mean(row.get("posterior"), 2),
                _mean(row.get("gap"), 3),
                _mean(row.get("ssim"), 3),
                _mean(row.get("kl_nats_per_frame"), 2),
                _mean(row.get("active_units_share"), 3),
                _mean(row.get("diversity"), 1),
            ]
        )
    return markdown_table(header, lines)


def predictions_table(study: ConfigDict, rows: list[dict]) -> str:
    """Return the metrics of the prior's rows as a Markdown table: one line per variant and metric."""
    shown = dict(zip(OF_THE_PRIOR, ("N = 1", "best of N"), strict=True))
    if not study.base.eval.best_of:
        del shown["prior_best_of_N"]
    header = ["variant", "metric"]
    for title in shown.values():
        header += [title, "95 %"]
    header += [f"minus {study.compare}", "95 %"] if study.compare else []
    lines = []
    for metric in columns.metrics_of(row["metrics"] for row in rows):
        for row in rows:
            entries = row["metrics"].get(metric.name)
            if entries is None:
                continue
            cells = [row["variant"], metric.title]
            for name in shown:
                cells += _with_interval(entries[name], metric.digits)
            if study.compare:
                cells += _with_interval(entries["difference"], metric.digits, sign="+")
            lines.append(cells)
    return markdown_table(header, lines)


def baselines_table(baselines: dict[str, dict]) -> str:
    """Return the rows of the baselines as a Markdown table."""
    metrics = columns.metrics_of(baselines.values())
    lines = [
        [name + (" †" if row["sees_target"] else "")]
        + [number(row.get(metric.name), metric.digits) for metric in metrics]
        for name, row in baselines.items()
    ]
    return markdown_table(["", *(metric.title for metric in metrics)], lines)


def _with_interval(entry: dict | None, digits: int = 2, sign: str = "") -> tuple[str, str]:
    if entry is None:
        return "-", "-"
    form = f"{sign}.{digits}f"
    return number(entry["mean"], form), interval(entry["ci95"], form)


def _mean(entry: dict | None, digits: int) -> str:
    return number(None if entry is None else entry["mean"], digits)
