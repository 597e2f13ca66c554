"""The evaluation of a trained run: rows of PSNR and SSIM, with their protocol, and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from cvae_jax.baselines import Baselines
from cvae_jax.checkpoint import Checkpoints
from cvae_jax.config import Components
from cvae_jax.data.clips import Recording, data_hash, extend, to_unit
from cvae_jax.files import replacing
from cvae_jax.metrics import bootstrap_ci, psnr_per_frame, ssim_per_frame
from cvae_jax.models.cvae import init_variables
from cvae_jax.parallel import Devices
from cvae_jax.report import figures, tables
from cvae_jax.train import METRICS_FILE, load_data
from cvae_jax.train_state import TrainState
from cvae_jax.validation import Validator

FPS = 10
ROWS = ("prior", "posterior", "nearest_pose", "mean_frame", "copy_first", "copy_previous")
_BASELINE_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """One row's scores of one clip per predicted frame (T-1,): PSNR in dB and SSIM."""

    scene: str
    psnr: np.ndarray
    ssim: np.ndarray


def evaluate(
    config: ConfigDict,
    workdir: Path,
    checkpoint: str = "best",
    devices: Sequence[jax.Device] | None = None,
) -> dict:
    """Score a run's checkpoint on its validation clips and write W/eval/.

    Writes results.json, table.md, per_frame_psnr.png, training_curves.png, and per clip a GIF (truth,
    prior, posterior, label) and a film strip. Returns the results.

    Raises UserError where there is no such checkpoint or the data are not there.
    """
    parts = Components.build(config)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.find(checkpoint)
        data = load_data(config)
        recordings = data["validation"]
        frame_size = recordings[0].frames.shape[1:3]
        variables = init_variables(parts.model, config.seed, frame_size)
        template = TrainState.create(variables, parts.optimizer)
        state, progress = checkpoints.restore(template, step)
    folder = workdir / "eval"

    scores, pictures = score_model(config, parts, state.evaluation_variables, recordings, devices)
    scores |= score_baselines(data["train"], recordings)
    results = {
        "protocol": protocol(config, data, step, checkpoint, progress.epoch),
        "rows": rows(scores, config.eval.seed),
    }
    with replacing(folder / "results.json") as partial:
        partial.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    with replacing(folder / "table.md") as partial:
        partial.write_text(tables.results_table(results))
    draw(folder, workdir, results, recordings, pictures)
    return results


def score_model(
    config: ConfigDict,
    parts: Components,
    variables: dict,
    recordings: list[Recording],
    devices: Sequence[jax.Device] | None,
) -> tuple[dict[str, list[ClipScores]], list[dict[str, np.ndarray]]]:
    """Return {row: a ClipScores per clip} of 'prior' and 'posterior', and each clip's predicted frames.

    The prior's scores are means over config.eval.samples samples; the frames are of sample 0.
    """
    validator = Validator(parts, Devices(devices), config.eval.batch_size, with_ssim=True)
    jobs = [("prior", n) for n in range(config.eval.samples)] + [("posterior", 0)]
    collected: dict[str, list[list[ClipScores]]] = {"prior": [], "posterior": []}
    pictures: list[dict[str, np.ndarray]] = [{} for _ in recordings]
    with tqdm(total=len(jobs) * len(recordings), unit="clip", dynamic_ncols=True) as bar:
        bar.set_description("rolling out (the first compiles)")
        for mode, sample in jobs:
            clips = []
            for s in validator.run(variables, recordings, mode, config.eval.seed, sample):
                clips.append(ClipScores(s.recording.scene, s.scores["psnr"], s.scores["ssim"]))
                pictures[s.clip].setdefault(mode, s.frames)
                bar.update()
            collected[mode].append(clips)
    means = {
        mode: [
            ClipScores(
                same[0].scene,
                np.mean([c.psnr for c in same], axis=0),
                np.mean([c.ssim for c in same], axis=0),
            )
            for same in zip(*samples, strict=True)
        ]
        for mode, samples in collected.items()
    }
    return means, pictures


def score_baselines(
    train: list[Recording], recordings: list[Recording]
) -> dict[str, list[ClipScores]]:
    """Return {row: a ClipScores per clip} of the four baselines."""
    baselines = Baselines(train)
    measure = jax.jit(lambda p, t: (psnr_per_frame(p, t), ssim_per_frame(p, t)))
    scores: dict[str, list[ClipScores]] = {}
    for recording in recordings:
        truth = to_unit(recording.frames[1:])
        for name, prediction in baselines.predict(recording):
            parts = []
            for begin in range(0, len(truth), _BASELINE_CHUNK):
                chunk = slice(begin, begin + _BASELINE_CHUNK)
                real = len(truth[chunk])
                filled = [extend(x[chunk], _BASELINE_CHUNK) for x in (prediction, truth)]
                parts.append([np.asarray(m)[:real] for m in measure(*map(jnp.asarray, filled))])
            psnr, ssim = (np.concatenate(values) for values in zip(*parts, strict=True))
            scores.setdefault(name, []).append(ClipScores(recording.scene, psnr, ssim))
    return scores


def rows(scores: dict[str, list[ClipScores]], seed: int) -> list[dict]:
    """Return the rows of results.json: means over scenes first, then each scene's.

    A clip's PSNR is the mean of its per-frame values; a scene's is the mean over its clips; the mean row's
    is the mean over scenes, with a 95 % bootstrap interval over clips.
    """
    scenes = sorted({clip.scene for clip in scores["prior"]})
    result = [_row(name, scores[name], scenes, seed) for name in ROWS]
    if len(scenes) > 1:
        for scene in scenes:
            for name in ROWS:
                own = [clip for clip in scores[name] if clip.scene == scene]
                result.append({"scene": scene} | _row(name, own, [scene], seed))
    return result


def _row(name: str, clips: list[ClipScores], scenes: list[str], seed: int) -> dict:
    def over_scenes(values: list[float]) -> float:
        by_scene = [
            np.mean([v for v, clip in zip(values, clips, strict=True) if clip.scene == scene])
            for scene in scenes
        ]
        return float(np.mean(by_scene))

    psnr = [float(np.mean(clip.psnr, dtype=np.float64)) for clip in clips]
    ssim = [float(np.mean(clip.ssim, dtype=np.float64)) for clip in clips]
    interval = bootstrap_ci(psnr, seed)
    longest = max(len(clip.psnr) for clip in clips)
    per_frame = [
        float(np.mean([clip.psnr[t] for clip in clips if t < len(clip.psnr)]))
        for t in range(longest)
    ]
    return {
        "name": name,
        "psnr": over_scenes(psnr),
        "psnr_ci95": None if interval is None else list(interval),
        "ssim": over_scenes(ssim),
        "num_clips": len(clips),
        "sees_target": name in figures.SEES_TARGET,
        "per_frame_psnr": per_frame,
    }


def protocol(
    config: ConfigDict, data: dict[str, list[Recording]], step: int, checkpoint: str, epochs: int
) -> dict:
    """Return what has to be known to compare the numbers with others."""
    recordings = data["validation"]
    return {
        "n_past": 1,
        "n_pred": [len(r.frames) - 1 for r in recordings],
        "clips": [r.name for r in recordings],
        "rollout": "autoregressive from the first true frame",
        "prior": "z ~ N(0, I)",
        "posterior": "z from the posterior of the frame being predicted (sees the target)",
        "samples": config.eval.samples,
        "seed": config.eval.seed,
        "psnr": "dB, data range 1, per frame over H, W, C; mean over frames, clips, then scenes; "
        "at most 100",
        "ssim": "Gaussian window 11, sigma 1.5, data range 1, per channel",
        "psnr_ci95": "bootstrap over clips",
        "data": config.data.name,
        "frame_size": list(recordings[0].frames.shape[1:3]),
        "data_blake2b": data_hash(recordings),
        "checkpoint": checkpoint,
        "step": step,
        "epochs_trained": epochs,
        "parameters_averaged": bool(config.optimizer.ema_decay),
    }


def draw(
    folder: Path,
    workdir: Path,
    results: dict,
    recordings: list[Recording],
    pictures: list[dict[str, np.ndarray]],
) -> None:
    """Write the curves, and a GIF and a film strip per clip, into the eval folder."""
    for scene in {row.get("scene") for row in results["rows"]}:
        curves = {
            row["name"]: row["per_frame_psnr"]
            for row in results["rows"]
            if row.get("scene") == scene
        }
        name = "per_frame_psnr" if scene is None else f"per_frame_psnr_{scene}"
        title = "mean over clips" if scene is None else scene
        figures.save_per_frame_psnr(folder / f"{name}.png", curves, f"PSNR per frame, {title}")
    metrics = workdir / METRICS_FILE
    if metrics.exists():
        history = [json.loads(line) for line in metrics.read_text().splitlines()]
        if history:
            figures.save_training_curves(folder / "training_curves.png", history)
    for recording, predicted in zip(recordings, pictures, strict=True):
        first = recording.frames[:1]
        columns = {
            "truth": recording.frames,
            "prediction": np.concatenate([first, predicted["prior"]]),
            "label": recording.labels,
            "posterior": np.concatenate([first, predicted["posterior"]]),
        }
        several = [r.scene for r in recordings].count(recording.scene) > 1
        stem = recording.name if several else recording.scene
        figures.save_gif(folder / f"{stem}.gif", columns, fps=FPS)
        every = max(1, len(recording.frames) // 12)
        figures.save_strip(folder / f"{stem}_strip.png", columns, every=every)
