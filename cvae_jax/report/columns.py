"""The metrics that results hold: their names, units, digits, and which way is better."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of predicted video, as rows of results.json and tables show it.

    Attributes:
      name: the field of a row; its interval over clips is `<name>_ci95`.
      title: the heading of its column, with the unit.
      digits: after the decimal point.
      higher_is_better: the direction in which the best of N samples is chosen.
      skips_frames: whether frames may lack it; they are NaN and left out of means.
    """

    name: str
    title: str
    digits: int
    higher_is_better: bool = True
    skips_frames: bool = False

    def is_better(self, value: float, than: float) -> bool:
        """Return whether a value is better than another; any number is better than NaN."""
        return math.isnan(than) or (value > than if self.higher_is_better else value < than)


PSNR = Metric("psnr", "PSNR (dB)", 2)
SSIM = Metric("ssim", "SSIM", 3)
LPIPS = Metric("lpips", "LPIPS", 4, higher_is_better=False)
PSNR_PERSON = Metric("psnr_person", "PSNR, person (dB)", 2, skips_frames=True)
SSIM_PERSON = Metric("ssim_person", "SSIM, person", 3, skips_frames=True)

# How the protocol's definition of a metric begins that was not measured.
NOT_MEASURED = "not measured"

# Those that have a value for each frame, in the order of tables.
FRAME_METRICS = (PSNR, SSIM, LPIPS, PSNR_PERSON, SSIM_PERSON)


def fvd(clips: int) -> Metric:
    """Return the Frechet video distance over so many clips: its value depends on how many they are."""
    return Metric(f"fvd_{clips}", f"FVD ({clips} clips)", 1, higher_is_better=False)


def direction(metrics: Iterable[Metric]) -> str:
    """Return a sentence that says which way the metrics are better."""
    titles = [metric.title for metric in metrics if not metric.higher_is_better]
    if not titles:
        return "Higher is better."
    return f"Lower is better for {' and '.join(titles)}, higher for the others."


def metrics_among(names: Iterable[str]) -> list[Metric]:
    """Return the frame metrics that are among some names, in the order of tables."""
    names = set(names)
    return [metric for metric in FRAME_METRICS if metric.name in names]


def metrics_of(rows: Iterable[dict]) -> list[Metric]:
    """Return the metrics that any of the rows of results.json has a value of, in the order of tables."""
    return metrics_named(name for row in rows for name, value in row.items() if value is not None)


def metrics_named(names: Iterable[str]) -> list[Metric]:
    """Return the metrics that are among some names, FVD included, in the order of tables."""
    names = set(names)
    counts = sorted(int(name[4:]) for name in names if re.fullmatch(r"fvd_\d+", name))
    return metrics_among(names) + [fvd(count) for count in counts]
