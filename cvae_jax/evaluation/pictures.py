"""The pictures of an evaluation: curves, GIFs and film strips."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cvae_jax.data.clips import Recording
from cvae_jax.report import figures
from cvae_jax.runtime.workdir import read_metrics

FPS = 10
MOST_PICTURES = 20  # clips of which a GIF and a film strip are written


def draw(
    folder: Path,
    workdir: Path,
    results: dict,
    recordings: list[Recording],
    pictures: list[dict[str, np.ndarray]],
) -> None:
    """Write the curves, and a GIF and a film strip for each of the first clips, into the eval folder.

    pictures: {'prior', 'posterior'} frames uint8 (P, H, W, 3) of the first MOST_PICTURES clips.
    """
    for scene in {row.get("scene") for row in results["rows"]}:
        curves = {row["name"]: row["per_frame_psnr"] for row in results["rows"] if row.get("scene") == scene}
        name = "per_frame_psnr" if scene is None else f"per_frame_psnr_{scene}"
        title = "mean over scenes" if scene is None else scene
        figures.save_per_frame_psnr(folder / f"{name}.png", curves, f"PSNR per frame, {title}")
    history = read_metrics(workdir)
    if history:
        figures.save_training_curves(folder / "training_curves.png", history)
    n_past = results["protocol"]["n_past"]
    for recording, predicted in zip(recordings, pictures):
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
