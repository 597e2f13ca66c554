"""The numbers of a study: means over seeds with intervals, and differences seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from cvae_jax.report import columns
from cvae_jax.study.plan import Planned

OF_THE_PRIOR = ("prior", "prior_best_of_N")


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, tuple[float, float] | None]:
    """Return the mean over seeds and its two-sided Student t interval; one seed has no interval.

    Values are one per seed, in any unit. With few seeds the interval is wide, as it should be: for three
    seeds it is the mean +- 2.5 standard deviations.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    margin = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return mean, (mean - float(margin), mean + float(margin))


def summarise(study: ConfigDict, runs: Sequence[Planned]) -> list[dict]:
    """Return the rows of the table, one per variant.

    `runs` are those of `cvae_jax.study.plan.plan`. 'stopped' counts runs that a non-finite number stopped, or
    whose scores are not finite. Every entry but 'variant', 'seeds', 'stopped' and 'metrics' holds
    {'mean', 'ci95', 'by_seed'}. 'metrics' holds such entries for each metric: for the rows 'prior'
    and 'prior_best_of_N', and for the 'difference' of the former from the variant that is compared with.
    Differences are taken seed by seed: the runs of one seed share the order of the data, the noise and, where
    they have the same networks, the initial parameters.
    """
    found = {
        name: {run.seed: _final(study, run) for run in runs if run.variant == name} for name in study.variants
    }
    rows, above = [], None
    for name, by_seed in found.items():
        done = {seed: values for seed, values in by_seed.items() if values is not None}
        stopped = sum(run.stopped or _not_finite(study, run) for run in runs if run.variant == name)
        row = {"variant": name, "seeds": sorted(done), "stopped": stopped}
        for key in next(iter(done.values()), {}).keys() - {"metrics"}:
            row[key] = _entry([values[key] for values in done.values()])
        compared = found[study.compare] if study.compare in found and name != study.compare else None
        if compared is not None:
            row["difference"] = _difference(done, compared)
        if study.steps and above is not None:
            row["step"] = _difference(done, found[above])
        row["metrics"] = _metrics(done, compared)
        rows.append(row)
        above = name
    return rows


def _metrics(done: dict[int, dict], compared: dict[int, dict | None] | None) -> dict[str, dict]:
    """Return {metric: its entries} over the seeds of a variant, and the difference seed by seed.

    Only metrics that all of the seeds have are included: LPIPS may have been installed for some of them only.
    """
    names = set.intersection(*(set(values["metrics"]) for values in done.values())) if done else set()
    found: dict[str, dict] = {}
    for metric in columns.metrics_named(names):
        own = {seed: values["metrics"].get(metric.name, {}) for seed, values in done.items()}
        found[metric.name] = {
            row: _entry([values[row] for values in own.values() if row in values]) for row in OF_THE_PRIOR
        }
        there = {seed: (values or {}).get("metrics", {}) for seed, values in (compared or {}).items()}
        pairs = [
            (own[seed].get("prior"), there.get(seed, {}).get(metric.name, {}).get("prior")) for seed in own
        ]
        found[metric.name]["difference"] = _entry([a - b for a, b in pairs if None not in (a, b)])
    return found


def _final(study: ConfigDict, run: Planned) -> dict[str, Any] | None:
    """Return the final scores of a run; None where there are none, or they are not finite.

    'metrics' holds {metric: {row: number}} of the prior's rows.
    """
    scores = run.scores(study.split, run.config.num_epochs)
    if scores is None or run.stopped or _not_finite(study, run):
        return None
    rows = {row["name"]: row for row in scores["rows"] if "scene" not in row}
    return {
        "prior": rows["prior"]["psnr"],
        "posterior": rows["posterior"]["psnr"],
        "gap": rows["posterior"]["psnr"] - rows["prior"]["psnr"],
        "ssim": rows["prior"]["ssim"],
        "kl_nats_per_frame": scores["latents"]["kl_nats_per_frame"],
        "active_units_share": scores["latents"]["active_units_share"],
        "diversity": scores["latents"]["diversity"],
        "metrics": {
            metric.name: {
                name: rows[name][metric.name]
                for name in OF_THE_PRIOR
                if name in rows and rows[name].get(metric.name) is not None
            }
            for metric in columns.metrics_of([rows["prior"]])
        },
    }


def _not_finite(study: ConfigDict, run: Planned) -> bool:
    """Return whether a run's scores hold null, which stands for a number that is not finite."""
    scores = run.scores(study.split, run.config.num_epochs)
    if scores is None:
        return False
    found = [row[metric] for row in scores["rows"] for metric in ("psnr", "ssim") if "scene" not in row]
    return None in [*found, *scores["latents"].values()]


def _entry(values: Sequence[float]) -> dict | None:
    if not values:
        return None
    mean, interval = mean_interval(values)
    return {"mean": mean, "ci95": None if interval is None else list(interval), "by_seed": list(values)}


def _difference(here: dict[int, dict], there: dict[int, dict | None]) -> dict | None:
    """Return the difference in prior PSNR over the seeds that both have."""
    pairs = [(own, other) for seed, own in here.items() if (other := there.get(seed)) is not None]
    return _entry([own["prior"] - other["prior"] for own, other in pairs])
