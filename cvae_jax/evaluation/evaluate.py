"""The evaluation of a trained run: rows of metrics, with their protocol, and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cvae_jax import config as config_files
from cvae_jax.config import Components
from cvae_jax.data.clips import Recording
from cvae_jax.data.load import load_ceiling, load_data
from cvae_jax.evaluation import video_distance
from cvae_jax.evaluation.baselines import score_baselines
from cvae_jax.evaluation.latents import Collected
from cvae_jax.evaluation.measures import Measures, choose
from cvae_jax.evaluation.model_scores import score_model
from cvae_jax.evaluation.pictures import draw
from cvae_jax.evaluation.protocol import protocol
from cvae_jax.evaluation.rows import rows
from cvae_jax.evaluation.scores import Scorer
from cvae_jax.evaluation.stability import drift
from cvae_jax.evaluation.video_distance import VideoDistance
from cvae_jax.report import tables
from cvae_jax.report.results import FILE, folder_of
from cvae_jax.runtime import processes
from cvae_jax.runtime.cache import Cache
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import nan_to_null, replacing, require_writable
from cvae_jax.runtime.progress import tell
from cvae_jax.runtime.workdir import read_metrics
from cvae_jax.training.checkpoint import restore_for_evaluation

PER_CLIP = "per_clip.npz"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The contents of results.json, what they were measured on, and what was kept of each clip's sample 0."""

    results: dict
    recordings: list[Recording]
    collected: Collected


def evaluate(
    config: ConfigDict,
    workdir: Path,
    checkpoint: str = "best",
    devices: Sequence[jax.Device] | None = None,
    split: str | None = None,
) -> dict:
    """Score a run's checkpoint on the clips of a split and write W/eval/, or W/eval_<split>/.

    split: None is the default, which is written to W/eval/: 'test' if the data set has such a split,
    otherwise 'validation'.

    Writes results.json, table.md, per_clip.npz, per_frame_psnr.png, training_curves.png, and for each of the
    first clips a GIF (truth, prior, posterior, label) and a film strip. Returns the results. In a job of
    several processes each rolls out its share of the clips, and process 0 alone reads the checkpoint and
    writes.

    Raises UserError if the checkpoint, the split or the data do not exist, or if a metric that the config
    requires cannot be measured.
    """
    config_files.agreed(config)  # before the data, which may have to be prepared
    cache = Cache()
    data = load_data(config.data, config.n_past, cache)
    chosen = split or default_split(data)
    processes.require_same("values of --split", chosen)
    of_split(data, chosen, config.data.name)
    folder = folder_of(workdir, chosen, default_split(data))

    def check_workdir() -> None:
        require_writable(folder, "make it a folder that can be written")
        read_metrics(workdir)  # for the curves: a damaged file is refused before anything is scored

    processes.on_first(check_workdir)
    done = score(config, workdir, checkpoint, devices, chosen, cache=cache)
    processes.on_first(lambda: _write(done, folder, workdir))
    return done.results


def _write(done: Evaluation, folder: Path, workdir: Path) -> None:
    with replacing(folder / FILE) as partial:
        partial.write_text(json.dumps(done.results, indent=1, allow_nan=False) + "\n")
    with replacing(folder / "table.md") as partial:
        partial.write_text(tables.results_table(done.results))
    with replacing(folder / PER_CLIP) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **per_clip(done.recordings, done.collected))
    draw(folder, workdir, done.results, done.recordings, done.collected.pictures)


def score(
    config: ConfigDict,
    workdir: Path,
    checkpoint: str,
    devices: Sequence[jax.Device] | None = None,
    split: str = "validation",
    baselines: bool = True,
    cache: Cache | None = None,
) -> Evaluation:
    """Score a run's checkpoint on the clips of a split, without writing anything; see `evaluate`.

    cache: shares data and compiled programs with other runs.
    """
    parts = config_files.agreed(config)
    cache = cache or Cache()
    data = load_data(config.data, config.n_past, cache)
    recordings = of_split(data, split, config.data.name)
    options = parts.evaluation
    measures, definitions = choose(recordings, options.lpips)
    definitions["fvd"] = video_distance.check(recordings, options.fvd_clips, split)
    if options.lpips is None and not measures.lpips:
        tell(f"LPIPS is {definitions['lpips']}.")
    variables, step, progress = processes.on_first(
        lambda: restore_for_evaluation(
            parts.model,
            workdir,
            checkpoint,
            recordings[0].frames.shape[1:3],
            recordings[0].label_size,
            averaged=parts.optimizer.averages,
        )
    )
    distance: VideoDistance | None = None  # in process 0, which writes it

    def prepare_fvd() -> None:
        nonlocal distance
        distance = VideoDistance(recordings, options.fvd_clips, config.n_past)

    if options.fvd_clips:
        processes.on_first(prepare_fvd)
    scorer = shared_scorer(cache, parts, Devices(devices), measures, options.noise_correlation)
    found = score_model(options, scorer, variables, recordings, config.n_past, distance)
    scores = found.rows
    if baselines:
        ceiling = load_ceiling(config.data, split)
        compared, more = score_baselines(data["train"], recordings, config.n_past, measures, ceiling)
        scores, definitions = scores | compared, definitions | more
    table = rows(scores, options)
    means = {row["name"]: row for row in table if "scene" not in row}
    means["prior"].update(found.fvd)
    results = {
        "protocol": protocol(config, data, split, step, checkpoint, progress.epoch, definitions),
        "rows": table,
        # The gap of the table's rows, whose prior is a mean over draws.
        "latents": found.collected.latents()
        | {"psnr_gap": means["posterior"]["psnr"] - means["prior"]["psnr"]},
        "stability": {"flicker": found.flicker, "drift": drift(table)},
    }
    return Evaluation(nan_to_null(results), recordings, found.collected)


def per_clip(recordings: list[Recording], collected: Collected) -> dict[str, Any]:
    """Return the contents of per_clip.npz: each clip's numbers for each predicted frame.

    'clip' and 'scene' name the clips. The others are float32 (clips, P), NaN past the end of a clip:
    'prior_<score>' of prior sample 0 and 'posterior_<score>' for what `Scored.scores` holds ('prior_std' is
    the prior's own standard deviation), and 'diversity', the PSNR between prior samples 0 and 1 in dB.
    """
    series = {"diversity": collected.diversity}
    for mode, scored in collected.scored.items():
        for name in scored[0].scores:
            series[f"{mode}_{name.removeprefix('prior_')}"] = [one.scores[name] for one in scored]
    longest = max(map(len, collected.diversity))
    found = {"clip": np.array([r.name for r in recordings]), "scene": np.array([r.scene for r in recordings])}
    for name, clips in series.items():
        found[name] = np.full((len(clips), longest), np.nan, np.float32)
        for row, values in zip(found[name], clips, strict=True):
            row[: len(values)] = values
    return found


def default_split(data: Collection[str]) -> str:
    """Return the split of a data set that is scored if none is named."""
    return "test" if "test" in data else "validation"


def shared_scorer(
    cache: Cache,
    parts: Components,
    devices: Devices,
    measures: Measures = Measures(),
    noise_correlation: float = 0.0,
) -> Scorer:
    """Return the scorer of a run; runs whose programs are the same share it."""
    size, chunk = parts.evaluation.batch_size, parts.evaluation.chunk
    key = ("scorer", parts.compiled, devices.devices, size, chunk, measures, noise_correlation)
    return cache.get(
        key,
        lambda: Scorer(
            parts.model,
            parts.objective,
            devices,
            n_past=parts.n_past,
            batch_size=size,
            chunk=chunk,
            measures=measures,
            noise_correlation=noise_correlation,
        ),
    )


def of_split(data: dict[str, list[Recording]], split: str, name: str) -> list[Recording]:
    """Return the recordings of a split; UserError if the data set does not have it."""
    if split not in data:
        raise UserError(
            f"The data set {name} has no split {split!r}; choose one of "
            f"{', '.join(known for known in data if known != 'train')}."
        )
    return data[split]
