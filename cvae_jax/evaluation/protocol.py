"""How numbers were measured: the record that is stored with every table."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ml_collections import ConfigDict

from cvae_jax.data.clips import Recording, data_hash


def protocol(
    config: ConfigDict,
    data: dict[str, list[Recording]],
    split: str,
    step: int,
    checkpoint: str,
    epochs: int,
    definitions: dict[str, str],
) -> dict:
    """Return what a reader needs to know to compare the numbers with others.

    definitions: of the metrics besides PSNR and SSIM, or why they were not measured.
    """
    recordings = data[split]
    return {
        "split": split,
        "n_past": config.n_past,
        "n_pred": [len(r.frames) - config.n_past for r in recordings],
        "clips": [r.name for r in recordings],
        "rollout": "autoregressive from the first n_past true frames",
        "model": config.model.kind,
        "prior": f"z from the model's prior, one draw; mean of {config.eval.samples} draws",
        "prior_best_of_N": f"N = {config.eval.best_of}; per clip and metric the draw with the best mean over "
        "frames (looks at the target to choose); the row prior is N = 1",
        "prior_mean": "z is the mean of the prior (temperature 0)",
        "posterior": "z from the posterior of the frame being predicted (sees the target), one draw",
        "samples": config.eval.samples,
        "best_of": config.eval.best_of,
        "temperature": config.eval.temperature,
        "noise_correlation": config.eval.noise_correlation,
        "seed": config.eval.seed,
        "psnr": "dB, data range 1, per frame over H, W, C; mean over frames, clips, then scenes; at most 100",
        "ssim": "Gaussian window 11, sigma 1.5, data range 1, per channel",
        **definitions,
        "ci95": "percentile bootstrap over the clips within scenes; a scene of one clip is held fixed",
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
    root = Path(__file__).resolve().parent.parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    own = git("ls-files", "cvae_jax/__init__.py")
    if not own or top is None or Path(top).resolve() != root:  # installed, in somebody else's repository
        return None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{git('rev-parse', 'HEAD')}{'-dirty' if changed else ''}"
