"""The prior's width before and at the turns of digits: python -m cvae_jax.study.turns W1 W2 ... --out=F.png

It takes runs on Stochastic Moving MNIST that evaluate.py has scored, and plots the prior's standard deviation
against the number of frames until a digit next shows a new, random velocity. A learned prior that knows where
digits turn is wide there and narrow in between.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.data.clips import data_hash
from cvae_jax.data.datasets import stochastic_moving_mnist as digits
from cvae_jax.data.load import load_data
from cvae_jax.evaluation.evaluate import PER_CLIP
from cvae_jax.report import results
from cvae_jax.report.figures import finish, save_figure
from cvae_jax.runtime import cli
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import replacing

FARTHEST = 8  # frames to the next turn that are shown


def frames_to_turn(turned: np.ndarray) -> np.ndarray:
    """Return float (T,): the number of frames from each frame to the next one with a turn, 0 in that frame.

    turned: bool (T, digits), as `turns` of the data set returns it. NaN where no turn follows.
    """
    distance, found = np.full(len(turned), np.nan), np.nan
    for t in range(len(turned) - 1, -1, -1):
        found = 0.0 if turned[t].any() else found + 1
        distance[t] = found
    return distance


def widths_by_distance(width: np.ndarray, distance: np.ndarray) -> list[dict]:
    """Return for each distance up to FARTHEST the mean width, its standard error and the number of frames.

    width, distance: (clips, P). A clip's frames are averaged first: the standard error is over clips.
    """
    rows = []
    for frames in range(FARTHEST + 1):
        by_clip = [w[d == frames] for w, d in zip(width, distance, strict=True)]
        means = [values.mean() for values in by_clip if values.size]
        if len(means) > 1:
            rows.append(
                {
                    "frames_to_turn": frames,
                    "prior_std": float(np.mean(means)),
                    "standard_error": float(stats.sem(means)),
                    "frames": int(sum(map(len, by_clip))),
                }
            )
    return rows


def of_run(workdir: Path) -> list[dict]:
    """Return `widths_by_distance` of the clips that a run was evaluated on.

    Raises UserError for a run on other data, or one that has not been evaluated on the clips that its config
    describes.
    """
    config = config_files.load(workdir, defaults.get_config())
    if config.data.name != digits.NAME:
        raise UserError(
            f"{workdir} was trained on {config.data.name}; give runs on {digits.NAME}, which says when its "
            "digits turn."
        )
    protocol = results.read(workdir / results.FOLDER, workdir, None)["protocol"]
    recordings = load_data(config.data, config.n_past)[protocol["split"]]
    if data_hash(recordings) != protocol["data_blake2b"]:
        raise UserError(
            f"{workdir} was evaluated on other clips than its config describes; run "
            f"{cli.command('evaluate')} --workdir={workdir} without --config.data flags."
        )
    path = workdir / results.FOLDER / PER_CLIP
    try:
        with np.load(path) as found:
            width = found["prior_std"]
    except FileNotFoundError:
        raise UserError(
            f"There is no {path}; run {cli.command('evaluate')} --workdir={workdir} first."
        ) from None
    options = digits.Options(**config.data[digits.NAME])
    choice = digits.read_digits(config.data.dir)
    distance = []
    for recording in recordings:
        split, index = recording.name.rsplit("_", 1)
        length = len(recording.frames)
        turned = digits.turns(len(choice[split]), options.seed, split, int(index), length, options.digits)
        distance.append(frames_to_turn(turned)[config.n_past :])
    return widths_by_distance(width, np.stack(distance))


def draw(path: Path, curves: dict[str, list[dict]]) -> None:
    """Draw each run's curve with twice its standard error, both divided by the run's mean over frames."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, rows in curves.items():
        x, y, error, frames = (
            np.array([row[key] for row in rows])
            for key in ("frames_to_turn", "prior_std", "standard_error", "frames")
        )
        mean = np.average(y, weights=frames)
        label = f"{name} (mean {mean:.3f})"
        axes.errorbar(x, y / mean, yerr=2 * error / mean, marker="o", markersize=4, capsize=2, label=label)
    axes.invert_xaxis()
    axes.set(
        xlabel="frames to the next turn of a digit (0: its new velocity shows)",
        ylabel="standard deviation of the prior (mean over z),\nrelative to the run's mean",
        title="How wide the prior is before and at a turn",
    )
    finish(axes, legend=True)
    save_figure(path, figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the figure and, beside it, its numbers as JSON; a user's mistake ends with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m cvae_jax.study.turns", description="The prior's width against the next turn."
    )
    parser.add_argument("workdirs", nargs="+", type=Path, help="runs that evaluate.py has scored")
    parser.add_argument("--out", type=Path, default=Path("turns.png"), help="the figure; default: turns.png")
    arguments = parser.parse_args(argv)
    try:
        curves = {str(workdir): of_run(workdir) for workdir in arguments.workdirs}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    draw(arguments.out, curves)
    numbers = arguments.out.with_suffix(".json")
    with replacing(numbers) as partial:
        partial.write_text(json.dumps(curves, indent=1) + "\n")
    print(f"Wrote {arguments.out} and {numbers}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
