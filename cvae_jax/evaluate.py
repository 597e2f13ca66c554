"""The evaluation of a trained run: rows of PSNR and SSIM, with their protocol, and pictures."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cvae_jax.baselines import Baselines
from cvae_jax.checkpoint import restore_for_evaluation
from cvae_jax.config import Components
from cvae_jax.data.clips import Recording, data_hash, extend, to_unit
from cvae_jax.errors import UserError
from cvae_jax.files import replacing
from cvae_jax.metrics import bootstrap_ci, psnr_per_frame, ssim_per_frame
from cvae_jax.parallel import Devices
from cvae_jax.progress import clip_bar
from cvae_jax.report import figures, tables
from cvae_jax.train import METRICS_FILE, Programs, finite
from cvae_jax.validation import Scored, Validator, latents

FPS = 10
BASELINES = ("nearest_pose", "mean_frame", "copy_first", "copy_previous")
ROWS = ("prior", "prior_best_of_N", "prior_mean", "prior_scaled", "posterior", *BASELINES)
MOST_PICTURES = 20  # clips of which a GIF and a film strip are written
_BASELINE_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """One row's scores of one clip per predicted frame (T - n_past,): PSNR in dB and SSIM.

    `draws` holds the clip's mean PSNR and SSIM of each draw, where the row is a mean over several.
    """

    scene: str
    psnr: np.ndarray
    ssim: np.ndarray
    draws: tuple[dict[str, float], ...] = ()


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
    make_folder(folder)
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
    programs: Programs | None = None,
) -> Evaluation:
    """Score a run's checkpoint on the clips of a split, without writing anything; see `evaluate`."""
    parts = Components.build(config)
    programs = programs or Programs()
    data = programs.data(config)
    recordings = of_split(data, split, config.data.name)
    variables, step, progress = restore_for_evaluation(
        parts, workdir, checkpoint, recordings[0].frames.shape[1:3], recordings[0].label_size
    )
    validator = programs.validator(config, parts, Devices(devices), with_ssim=True)
    scores, pictures, told = score_model(config, validator, variables, recordings)
    if baselines:
        scores |= score_baselines(data["train"], recordings, config.n_past)
    table = rows(scores, config)
    psnr = {row["name"]: row["psnr"] for row in table if "scene" not in row}
    results = {
        "protocol": protocol(config, data, split, step, checkpoint, progress.epoch),
        "rows": table,
        "latents": told | {"psnr_gap": psnr["posterior"] - psnr["prior"]},
    }
    return Evaluation(finite(results), recordings, pictures)


def make_folder(folder: Path) -> None:
    """Make a folder that results will be written to; UserError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"Cannot write the results to {folder} ({error.strerror}): make it a folder that can be written."
        ) from error


def of_split(data: dict[str, list[Recording]], split: str, name: str) -> list[Recording]:
    """Return the recordings of a split; UserError where the data set has none."""
    if split not in data:
        raise UserError(
            f"The data set {name} has no split {split!r}; choose one of "
            f"{', '.join(known for known in data if known != 'train')}."
        )
    return data[split]


def score_model(
    config: ConfigDict, validator: Validator, variables: dict, recordings: list[Recording]
) -> tuple[dict[str, list[ClipScores]], list[dict[str, np.ndarray]], dict[str, float]]:
    """Return {row: a ClipScores per clip} of the model's rows, each clip's frames, and the latents' numbers.

    Samples stream: of each clip only sums and the best so far are kept. The frames are of sample 0.
    """
    seed, count = config.eval.seed, max(config.eval.samples, config.eval.best_of)
    jobs = [("prior", dict(samples=range(count)))]
    jobs.append(("prior_mean", dict(temperature=0.0, frames_of=())))
    if config.eval.temperature is not None:
        scaled = dict(samples=range(config.eval.samples), temperature=config.eval.temperature)
        jobs.append(("prior_scaled", scaled | dict(frames_of=())))
    jobs.append(("posterior", {}))
    total = sum(len(keywords.get("samples", range(1))) for _, keywords in jobs)
    scores: dict[str, list[ClipScores]] = {}
    first: dict[str, list[Scored]] = {"prior": [], "posterior": []}
    with clip_bar(total * len(recordings)) as bar:
        bar.set_description("rolling out (the first compiles)")
        for name, keywords in jobs:
            mode = "posterior" if name == "posterior" else "prior"
            collected = [Samples(r.scene, config.eval.samples, config.eval.best_of) for r in recordings]
            for scored in validator.run(variables, recordings, mode, seed, **keywords):
                collected[scored.clip].add(scored)
                if scored.sample == 0 and name in first:
                    first[name].append(scored)
                bar.update()
            scores[name] = [clip.mean for clip in collected]
            if name == "prior" and config.eval.best_of:
                scores["prior_best_of_N"] = [clip.best for clip in collected]
    pictures = [
        {"prior": prior.frames, "posterior": posterior.frames}
        for prior, posterior in zip(first["prior"], first["posterior"], strict=True)
    ]
    return scores, pictures, latents(first["prior"], first["posterior"])


class Samples:
    """What is kept of a clip's samples: the mean of the first `averaged`, the best of the first `best_of`.

    The best is chosen by the clip's mean, for PSNR and for SSIM each (the protocol of SVG and SRVP).
    """

    def __init__(self, scene: str, averaged: int, best_of: int):
        self._scene, self._averaged, self._best_of = scene, averaged, best_of
        self._means: list[dict[str, float]] = []
        self._sums: dict[str, np.ndarray] = {}
        self._best: dict[str, np.ndarray] = {}

    def add(self, scored: Scored) -> None:
        """Take in one sample."""
        own = {name: scored.scores[name].astype(np.float64) for name in ("psnr", "ssim")}
        if scored.sample < self._averaged:
            self._means.append({name: float(values.mean()) for name, values in own.items()})
            self._sums = {name: self._sums.get(name, 0.0) + values for name, values in own.items()}
        if scored.sample < self._best_of:
            for name, values in own.items():
                if name not in self._best or values.mean() > self._best[name].mean():
                    self._best[name] = values

    @property
    def mean(self) -> ClipScores:
        """The mean over samples of each frame's scores."""
        psnr, ssim = (self._sums[name] / len(self._means) for name in ("psnr", "ssim"))
        return ClipScores(self._scene, psnr, ssim, tuple(self._means))

    @property
    def best(self) -> ClipScores:
        """The PSNR of the sample with the best mean PSNR, the SSIM of that with the best mean SSIM."""
        return ClipScores(self._scene, self._best["psnr"], self._best["ssim"])


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


def rows(scores: dict[str, list[ClipScores]], config: ConfigDict) -> list[dict]:
    """Return the rows of results.json: means over scenes first, then each scene's.

    A clip's PSNR is the mean of its per-frame values; a scene's is the mean over its clips; the mean row's
    is the mean over scenes, with 95 % bootstrap intervals over clips, each weighing as in the mean. Over
    sampling seeds: the same number of each draw, and their standard deviation.
    """
    names = [name for name in ROWS if name in scores]
    scenes = sorted({clip.scene for clip in scores[names[0]]})
    result = [_row(name, scores[name], scenes, config) for name in names]
    if len(scenes) > 1:
        for scene in scenes:
            for name in names:
                own = [clip for clip in scores[name] if clip.scene == scene]
                result.append({"scene": scene} | _row(name, own, [scene], config))
    return result


def _row(name: str, clips: list[ClipScores], scenes: list[str], config: ConfigDict) -> dict:
    sizes = {scene: sum(clip.scene == scene for clip in clips) for scene in scenes}
    weights = np.array([1.0 / (len(scenes) * sizes[clip.scene]) for clip in clips])

    row: dict = {"name": name}
    if name == "prior_best_of_N":
        row["n"] = config.eval.best_of
    if name == "prior_scaled":
        row["temperature"] = config.eval.temperature
    for metric in ("psnr", "ssim"):
        means = [float(np.mean(getattr(clip, metric), dtype=np.float64)) for clip in clips]
        known = np.isfinite(means).all()
        interval = bootstrap_ci(means, config.eval.seed, weights=weights) if known else None
        seeds = [
            float(weights @ [clip_mean[metric] for clip_mean in draw])
            for draw in zip(*(clip.draws for clip in clips), strict=True)
        ]
        several = len(seeds) > 1
        row[metric] = float(weights @ means)
        row[f"{metric}_ci95"] = None if interval is None else list(interval)
        row[f"{metric}_by_seed"] = seeds if several else None
        row[f"{metric}_seed_std"] = float(np.std(seeds, ddof=1)) if several else None
    longest = max(len(clip.psnr) for clip in clips)
    per_frame = [
        float(np.mean([clip.psnr[t] for clip in clips if t < len(clip.psnr)])) for t in range(longest)
    ]
    return row | {
        "num_clips": len(clips),
        "sees_target": name in figures.SEES_TARGET,
        "per_frame_psnr": per_frame,
    }


def protocol(
    config: ConfigDict,
    data: dict[str, list[Recording]],
    split: str,
    step: int,
    checkpoint: str,
    epochs: int,
) -> dict:
    """Return what has to be known to compare the numbers with others."""
    recordings = data[split]
    return {
        "split": split,
        "n_past": config.n_past,
        "n_pred": [len(r.frames) - config.n_past for r in recordings],
        "clips": [r.name for r in recordings],
        "rollout": "autoregressive from the first n_past true frames",
        "prior": f"z ~ N(0, I), one draw; mean of {config.eval.samples} draws",
        "prior_best_of_N": f"N = {config.eval.best_of}; per clip and metric the draw with the best mean over "
        "frames (looks at the target to choose)",
        "prior_mean": "z = 0",
        "posterior": "z from the posterior of the frame being predicted (sees the target), one draw",
        "samples": config.eval.samples,
        "best_of": config.eval.best_of,
        "temperature": config.eval.temperature,
        "seed": config.eval.seed,
        "psnr": "dB, data range 1, per frame over H, W, C; mean over frames, clips, then scenes; at most 100",
        "ssim": "Gaussian window 11, sigma 1.5, data range 1, per channel",
        "ci95": "percentile bootstrap over clips",
        "seed_std": "standard deviation over draws",
        "data": config.data.name,
        "frame_size": list(recordings[0].frames.shape[1:3]),
        "data_blake2b": data_hash(recordings),
        "train_data_blake2b": data_hash(data["train"]),
        "checkpoint": checkpoint,
        "step": step,
        "epochs_trained": epochs,
        "parameters_averaged": bool(config.optimizer.ema_decay),
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit of this code, with '-dirty' where tracked files differ from it; None outside git."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:  # installed, inside somebody else's repository
        return None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{git('rev-parse', 'HEAD')}{'-dirty' if changed else ''}"


def draw(
    folder: Path,
    workdir: Path,
    results: dict,
    recordings: list[Recording],
    pictures: list[dict[str, np.ndarray]],
) -> None:
    """Write the curves, and a GIF and a film strip of the first clips, into the eval folder."""
    for scene in {row.get("scene") for row in results["rows"]}:
        curves = {row["name"]: row["per_frame_psnr"] for row in results["rows"] if row.get("scene") == scene}
        name = "per_frame_psnr" if scene is None else f"per_frame_psnr_{scene}"
        title = "mean over clips" if scene is None else scene
        figures.save_per_frame_psnr(folder / f"{name}.png", curves, f"PSNR per frame, {title}")
    metrics = workdir / METRICS_FILE
    if metrics.exists():
        history = [json.loads(line) for line in metrics.read_text().splitlines()]
        if history:
            figures.save_training_curves(folder / "training_curves.png", history)
    n_past = results["protocol"]["n_past"]
    for recording, predicted in list(zip(recordings, pictures, strict=True))[:MOST_PICTURES]:
        given = recording.frames[:n_past]
        columns = {
            "truth": recording.frames,
            "prediction": np.concatenate([given, predicted["prior"]]),
            **({"label": recording.labels} if recording.image_labels else {}),
            "posterior": np.concatenate([given, predicted["posterior"]]),
        }
        several = [r.scene for r in recordings].count(recording.scene) > 1
        stem = recording.name if several else recording.scene
        figures.save_gif(folder / f"{stem}.gif", columns, fps=FPS)
        every = max(1, len(recording.frames) // 12)
        figures.save_strip(folder / f"{stem}_strip.png", columns, every=every)
