"""The figures of a study, the first five as in the report: a line is the mean, a band spans the seeds.

A course maps a variant's name to the histories of its runs; a history is the rows of a run's metrics.jsonl,
here with 'clips_seen' (training clips) and 'trained' (the percentage of the run's epochs that are done).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

from cvae_jax.report.figures import finish, numbers, save_figure

Course = dict[str, list[list[dict]]]

LINEAR = 0.1  # nats per frame up to which the axis of the KL is linear


def save_forcing(path: str | os.PathLike, name: str, histories: list[list[dict]]) -> None:
    """Figure 1: the teacher-forcing ratio per epoch with the training loss over it."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, histories, "train_loss", "training loss", color="C0")
    _scale(axes, [histories], "train_loss")
    axes.set(xlabel="epoch", ylabel="training loss", title=f"{name}: teacher forcing and training loss")
    above = axes.twinx()
    _draw(above, histories, "teacher_forcing_ratio", "teacher-forcing ratio", color="C2", linestyle="--")
    for history in histories:
        share = numbers([row["teacher_forced"] for row in history])
        label = "epoch forced (each seed)" if history is histories[0] else None
        above.plot(_epochs(history), share, "x", color="C2", markersize=4, alpha=0.5, label=label)
    above.set(ylabel="teacher forcing", ylim=(-0.05, 1.05))
    lines = [*axes.get_lines(), *above.get_lines()]
    named = [line for line in lines if not str(line.get_label()).startswith("_")]
    above.legend(named, [str(line.get_label()) for line in named], fontsize=8, loc="upper right")
    finish(axes, legend=False)
    save_figure(path, figure)


def save_schedules(path: str | os.PathLike, course: Course) -> None:
    """Figure 2: the beta schedules, and the training loss of each."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    beta, loss = figure.subplots(2, 1, sharex=True)
    for index, (name, histories) in enumerate(course.items()):
        _draw(beta, histories[:1], "beta", name, color=f"C{index}", linestyle=("-", "--", ":")[index % 3])
        _draw(loss, histories, "train_loss", name, color=f"C{index}")
    _scale(loss, list(course.values()), "train_loss")
    beta.set(ylabel="beta", title="weight of the KL term")
    loss.set(xlabel="epoch", ylabel="training loss", title="training loss")
    finish(beta, legend=True)
    finish(loss, legend=True)
    save_figure(path, figure)


def save_validation(path: str | os.PathLike, course: Course) -> None:
    """Figure 3: validation loss, and PSNR with z from the prior and, next to it, from the posterior."""
    titles = {
        "val_loss": "validation loss (z from the posterior)",
        "val_psnr_prior": "PSNR (dB), z from the prior",
        "val_psnr_posterior": "PSNR (dB), posterior: sees the target",
    }
    figure, (loss, prior, posterior) = _panels(course, titles)
    prior.sharey(posterior)
    prior.autoscale(axis="y")
    _scale(loss, list(course.values()), "val_loss")
    save_figure(path, figure)


def save_per_frame(
    path: str | os.PathLike, curves: dict[tuple[str, int], dict[str, list[list[float]]]]
) -> None:
    """Figure 4: PSNR per frame of the validation sequence, z from the prior and from the posterior.

    `curves` maps (variant, epochs trained) to {'prior', 'posterior'}: a curve per seed.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(name for name, _ in curves))
    latest = max(epoch for _, epoch in curves)
    for axes, row, title in zip(
        panels, ("prior", "posterior"), ("prior", "posterior: sees the target"), strict=True
    ):
        for (name, epoch), rows in curves.items():
            mean = np.mean([numbers(curve) for curve in rows[row]], axis=0)
            axes.plot(
                range(1, len(mean) + 1),
                mean,
                color=f"C{names.index(name)}",
                linestyle="-" if epoch == latest else ":",
                linewidth=0.9,
                label=f"{name}, epoch {epoch}",
            )
        axes.set(xlabel="predicted frame", ylabel="PSNR (dB)", title=f"z from the {title}")
        finish(axes, legend=axes is panels[0])
    save_figure(path, figure)


def save_decays(path: str | os.PathLike, course: Course) -> None:
    """Figure 5: teacher-forcing ratio and validation loss of each decay, and the PSNR from the prior."""
    titles = {
        "teacher_forcing_ratio": "teacher-forcing ratio",
        "val_loss": "validation loss",
        "val_psnr_prior": "PSNR (dB), z from the prior",
    }
    figure, panels = _panels(course, titles, legend=1, dashes=("-", "--", ":"))
    _scale(panels[1], list(course.values()), "val_loss")
    save_figure(path, figure)


def save_latents(path: str | os.PathLike, course: Course, percentages: bool = False) -> None:
    """Figure 6: KL in nats per frame, share of active units, posterior minus prior.

    percentages: the horizontal axis is the percentage of a run's epochs that are done, for runs with
    different numbers of epochs.
    """
    titles = {
        "val_kl_nats_per_frame": "KL (nats per frame)",
        "val_active_units_share": "active units (share)",
        "val_psnr_gap": "PSNR, posterior minus prior (dB)",
    }
    x, xlabel = ("trained", "percentage of the run's epochs") if percentages else (None, "epoch")
    figure, panels = _panels(course, titles, x=x, xlabel=xlabel)
    panels[0].set_ylim(bottom=0)
    if panels[0].get_ylim()[1] > 2 * LINEAR:
        panels[0].set_yscale("symlog", linthresh=LINEAR)
        panels[0].yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=LINEAR, subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter("{x:g}")
    save_figure(path, figure)


def save_course(path: str | os.PathLike, course: Course) -> None:
    """Figure 7: metrics of the prior on the validation clips against the number of training clips seen.

    A metric that no run has logged has no panel.
    """
    titles = {
        "val_ssim_prior": "SSIM",
        "val_lpips_prior": "LPIPS (lower is better)",
        "val_psnr_prior": "PSNR (dB)",
    }
    rows = [row for histories in course.values() for history in histories for row in history]
    logged = {key: title for key, title in titles.items() if any(row.get(key) is not None for row in rows)}
    figure, _ = _panels(course, logged, x="clips_seen", xlabel="training clips seen")
    save_figure(path, figure)


DIFFERENCES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS (lower is better)"}


def save_differences(path: str | os.PathLike, rows: Sequence[dict], compare: str) -> None:
    """Figure 8: each variant minus the variant `compare`, by metric of the prior.

    A small dot is a seed, a large one the mean over seeds, the line its 95 % interval. rows: as
    `cvae_jax.study.summary.summarise` returns them.
    """
    metrics = [name for name in DIFFERENCES if any(_difference(row, name) for row in rows)]
    compared = [row for row in rows if any(_difference(row, name) for name in metrics)]
    figure = Figure(figsize=(2 + 3 * len(metrics), 1.2 + 0.3 * len(compared)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, metrics, strict=True):
        axes.axvline(0, color="0.6", linewidth=1)
        for place, row in enumerate(compared):
            found = _difference(row, name)
            if found is None:
                continue
            axes.plot(found["by_seed"], [place] * len(found["by_seed"]), ".", color="C0", alpha=0.5)
            axes.plot(found["mean"], place, "o", color="C0")
            if found["ci95"] is not None:
                axes.plot(found["ci95"], [place, place], color="C0", linewidth=1.3)
        axes.set(title=DIFFERENCES[name], xlabel=f"minus {compare}")
        finish(axes, legend=False)
        axes.xaxis.set_major_locator(MaxNLocator(4))  # not that of epochs, in whole numbers
    panels[0].set_yticks(range(len(compared)), [row["variant"] for row in compared])
    panels[0].invert_yaxis()
    save_figure(path, figure)


def _difference(row: dict, metric: str) -> dict | None:
    return row["metrics"].get(metric, {}).get("difference")


def _panels(
    course: Course,
    titles: dict[str, str],
    x: str | None = None,
    xlabel: str = "epoch",
    legend: int = 0,
    dashes: Sequence[str] = ("-",),
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each field of the histories, in which every variant is a line.

    titles: of the panels, by field. x: see `_draw`. legend: the panel that has it. dashes: the variants' line
    styles in turn; beyond ten variants, whose colors repeat, lines are dashed.
    """
    figure = Figure(figsize=(4 * max(1, len(titles)), 4.5), layout="constrained")
    panels = [figure.add_subplot(1, len(titles), place + 1) for place in range(len(titles))]
    for place, (axes, (key, title)) in enumerate(zip(panels, titles.items(), strict=True)):
        for index, (name, histories) in enumerate(course.items()):
            style = dashes[index % len(dashes)] if index < 10 else "--"
            _draw(axes, histories, key, name, x=x, color=f"C{index % 10}", linestyle=style)
        axes.set(xlabel=xlabel, title=title)
        finish(axes, legend=place == legend)
    return figure, panels


def _epochs(history: list[dict]) -> list[int]:
    return [row["epoch"] + 1 for row in history]


def _draw(
    axes: Axes, histories: list[list[dict]], key: str, label: str, x: str | None = None, **style: Any
) -> None:
    """Draw the mean over runs where it is known, and a band from the lowest to the highest value.

    x: the field along the axis, the same in all runs; None: the number of epochs.
    """
    length = max((len(history) for history in histories), default=0)
    values = np.full((len(histories), length), np.nan)
    for run, history in zip(values, histories, strict=True):
        run[: len(history)] = numbers([row.get(key) for row in history])
    known = np.flatnonzero(~np.isnan(values).all(axis=0))
    if known.size == 0:
        return
    values = values[:, known]
    longest = max(histories, key=len)
    places = known + 1 if x is None else [longest[row][x] for row in known]
    style |= {"marker": "o"} if known.size == 1 else {}  # a line of one point would not be seen
    axes.plot(places, np.nanmean(values, axis=0), label=label, linewidth=1.3, **style)
    if len(histories) > 1:
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axes.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _scale(axes: Axes, courses: Sequence[list[list[dict]]], key: str) -> None:
    """Use a logarithmic axis where values span more than a factor of 20."""
    values = numbers([row.get(key) for histories in courses for history in histories for row in history])
    values = values[~np.isnan(values)]
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
