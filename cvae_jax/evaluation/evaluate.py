"""The evaluation of a trained run: rows of PSNR and SSIM, with their protocol, and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cvae_jax.config import Components, EvaluationOptions
from cvae_jax.data.clips import Recording, extend, to_unit
from cvae_jax.data.load import load_data
from cvae_jax.evaluation.baselines import Baselines
from cvae_jax.evaluation.pictures import draw
from cvae_jax.evaluation.protocol import protocol
from cvae_jax.evaluation.rows import ClipScores, Samples, rows
from cvae_jax.evaluation.scores import Scored, Scorer, latents
from cvae_jax.metrics import psnr_per_frame, ssim_per_frame
from cvae_jax.report import tables
from cvae_jax.runtime.cache import Cache
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import make_writable, nan_to_null, replacing
from cvae_jax.runtime.progress import clip_bar
from cvae_jax.training.checkpoint import restore_for_evaluation

_BASELINE_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The contents of results.json, what it was measured on, and {'prior', 'posterior'} frames per clip."""

    results: dict
    recordings: list[Recording]
    pictures: list[dict[str, np.ndarray]]


def evaluate(
    config: ConfigDict,
    workdir: Path,
    checkpoint: str = "best",
    devices: Sequence[jax.Device] | None = None,
    split: str = "validation",
) -> dict:
    """Score a run's checkpoint on the clips of a split and write W/eval/, or W/eval_test/ for 'test'.

    Writes results.json, table.md, per_frame_psnr.png, training_curves.png, and per clip a GIF (truth,
    prior, posterior, label) and a film strip. Returns the results.

    Raises UserError where there is no such checkpoint or split or the data are not there.
    """
    folder = folder_of(workdir, split)
    make_writable(folder, "make it a folder that can be written")
    done = score(config, workdir, checkpoint, devices, split)
    with replacing(folder / "results.json") as partial:
        partial.write_text(json.dumps(done.results, indent=1, allow_nan=False) + "\n")
    with replacing(folder / "table.md") as partial:
        partial.write_text(tables.results_table(done.results))
    draw(folder, workdir, done.results, done.recordings, done.pictures)
    return done.results


def folder_of(workdir: Path, split: str) -> Path:
    """Return where the results of a split are written."""
    return workdir / ("eval" if split == "validation" else f"eval_{split}")


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
    parts = Components.build(config)
    cache = cache or Cache()
    data = load_data(config.data, config.n_past, cache)
    recordings = of_split(data, split, config.data.name)
    variables, step, progress = restore_for_evaluation(
        parts.model,
        workdir,
        checkpoint,
        recordings[0].frames.shape[1:3],
        recordings[0].label_size,
        averaged=parts.optimizer.averages,
    )
    scorer = shared_scorer(cache, parts, Devices(devices), with_ssim=True)
    scores, pictures, carried = score_model(parts.evaluation, scorer, variables, recordings)
    if baselines:
        scores |= score_baselines(data["train"], recordings, config.n_past)
    table = rows(scores, parts.evaluation)
    psnr = {row["name"]: row["psnr"] for row in table if "scene" not in row}
    results = {
        "protocol": protocol(config, data, split, step, checkpoint, progress.epoch),
        "rows": table,
        # The gap of the table's rows, whose prior is a mean over draws.
        "latents": carried | {"psnr_gap": psnr["posterior"] - psnr["prior"]},
    }
    return Evaluation(nan_to_null(results), recordings, pictures)


def shared_scorer(cache: Cache, parts: Components, devices: Devices, with_ssim: bool) -> Scorer:
    """Return the scorer of a run; runs whose programs are the same share it."""
    size, chunk = parts.evaluation.batch_size, parts.evaluation.chunk
    key = ("scorer", parts.compiled, devices.devices, size, chunk, with_ssim)
    return cache.get(
        key,
        lambda: Scorer(
            parts.model,
            parts.objective,
            devices,
            n_past=parts.n_past,
            batch_size=size,
            chunk=chunk,
            with_ssim=with_ssim,
        ),
    )


def of_split(data: dict[str, list[Recording]], split: str, name: str) -> list[Recording]:
    """Return the recordings of a split; UserError where the data set has none."""
    if split not in data:
        raise UserError(
            f"The data set {name} has no split {split!r}; choose one of "
            f"{', '.join(known for known in data if known != 'train')}."
        )
    return data[split]


def score_model(
    options: EvaluationOptions, scorer: Scorer, variables: PyTree, recordings: list[Recording]
) -> tuple[dict[str, list[ClipScores]], list[dict[str, np.ndarray]], dict[str, float]]:
    """Return {row: a ClipScores per clip} of the model's rows, each clip's frames, and the latents' numbers.

    Samples stream: of each clip only sums and the best so far are kept. The frames are of sample 0.
    """
    seed, count = options.seed, max(options.samples, options.best_of)
    jobs: list[tuple[str, dict[str, Any]]] = [("prior", dict(samples=range(count)))]
    jobs.append(("prior_mean", dict(temperature=0.0, frames_of=())))
    if options.temperature is not None:
        scaled = dict(samples=range(options.samples), temperature=options.temperature)
        jobs.append(("prior_scaled", scaled | dict(frames_of=())))
    jobs.append(("posterior", {}))
    total = sum(len(keywords.get("samples", range(1))) for _, keywords in jobs)
    scores: dict[str, list[ClipScores]] = {}
    first: dict[str, list[Scored]] = {"prior": [], "posterior": []}
    with clip_bar(total * len(recordings)) as bar:
        bar.set_description("rolling out (the first compiles)")
        for name, keywords in jobs:
            mode = "posterior" if name == "posterior" else "prior"
            collected = [Samples(r.scene, options.samples, options.best_of) for r in recordings]
            for scored in scorer.run(variables, recordings, mode, seed, **keywords):
                collected[scored.clip].add(scored)
                if scored.sample == 0 and name in first:
                    first[name].append(scored)
                bar.update()
            scores[name] = [clip.mean for clip in collected]
            if name == "prior" and options.best_of:
                scores["prior_best_of_N"] = [clip.best for clip in collected]
    pictures = []
    for prior, posterior in zip(first["prior"], first["posterior"], strict=True):
        assert prior.frames is not None and posterior.frames is not None, "of sample 0 there are frames"
        pictures.append({"prior": prior.frames, "posterior": posterior.frames})
    return scores, pictures, latents(first["prior"], first["posterior"])


def score_baselines(
    train: list[Recording], recordings: list[Recording], n_past: int
) -> dict[str, list[ClipScores]]:
    """Return {row: a ClipScores per clip} of the baselines."""
    baselines = Baselines(train)
    measure = jax.jit(lambda p, t: (psnr_per_frame(p, t), ssim_per_frame(p, t)))
    scores: dict[str, list[ClipScores]] = {}
    for recording in recordings:
        truth = to_unit(recording.frames[n_past:])
        for name, prediction in baselines.predict(recording, n_past):
            parts = []
            for begin in range(0, len(truth), _BASELINE_CHUNK):
                chunk = slice(begin, begin + _BASELINE_CHUNK)
                real = len(truth[chunk])
                filled = [extend(x[chunk], _BASELINE_CHUNK) for x in (prediction, truth)]
                parts.append([np.asarray(m)[:real] for m in measure(*map(jnp.asarray, filled))])
            psnr, ssim = (np.concatenate(values) for values in zip(*parts, strict=True))
            scores.setdefault(name, []).append(ClipScores(recording.scene, psnr, ssim))
    return scores
