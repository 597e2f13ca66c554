"""An epoch's numbers, and where they go: TensorBoard, and Weights & Biases if asked for."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cvae_jax.report.figures import image_strip
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import replacing, writing

CONTROLS = ("beta", "forced_share")  # what of the controls is averaged over an epoch
SKIPPED = "skipped"  # among the sums of an epoch, the number of steps that were not finite
# Fields of an epoch's row, and the metrics of its steps that they are means of.
MEANS = {"train_loss": "loss", "recon": "recon", "kl": "kl", "grad_norm": "grad_norm", "extra_loss": "extra"}


def epoch_row(epoch: int, batches: int, sums: dict[str, float], logged: dict[str, float]) -> dict:
    """Return the row of metrics.jsonl of an epoch without its validation and its times.

    sums: over the epoch's steps; metrics of skipped steps have no part in them. logged: the controls of the
    last step. Means over no steps are NaN.
    """
    skipped = int(sums.get(SKIPPED, 0))
    finite = batches - skipped
    mean = {name: value / finite if finite else math.nan for name, value in sums.items()}
    norms: dict[str, dict[str, float]] = {"grad_norm_by_module": {}, "param_norm_by_module": {}}
    for name, value in mean.items():
        kind, _, module = name.partition("/")
        if module:
            norms[f"{kind}_by_module"][module] = value
    return {
        "epoch": epoch,
        "step": (epoch + 1) * batches,
        **{
            field: mean.get(name, math.nan)
            for field, name in MEANS.items()
            if name in mean or name != "extra"
        },
        "beta": sums["beta"] / batches,
        "teacher_forcing_ratio": logged["ratio"],
        "teacher_forced": sums["forced_share"] / batches,
        "learning_rate": logged["learning_rate"],
        "skipped_steps": skipped,
        **norms,
    }


class Writers:
    """Scalars of every epoch and film strips of every validation.

    Args:
      workdir: the run's folder, where TensorBoard's events go.
      images: whether to draw film strips.
      wandb: a run of Weights & Biases (see `start_wandb`), or None.
    """

    def __init__(self, workdir: Path, images: bool, wandb: Any = None):
        self._images, self._wandb, self._workdir = images, wandb, workdir

    @functools.cached_property
    def _tensorboard(self):
        # Not before there is something to write: it brings TensorFlow along, which takes seconds.
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(self._workdir))

    def epoch(self, row: dict) -> None:
        """Write an epoch's row of metrics.jsonl; scenes become one scalar each."""
        scalars: dict[str, float] = {}
        for name, value in row.items():
            if isinstance(value, dict):
                scalars |= {f"{name}/{key}": entry for key, entry in value.items()}
            elif value is not None and name != "step":
                scalars[name] = value
        with self._writing():
            self._tensorboard.write_scalars(row["step"], scalars)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(scalars, step=row["step"])

    def validation(
        self,
        step: int,
        per_frame: Mapping[str, Mapping[str, Sequence[float]]],
        videos: Mapping[str, dict[str, np.ndarray]],
    ) -> None:
        """Write the PSNR per frame, by scene and mode, and a film strip of each scene's video."""
        with self._writing():
            for scene, curves in per_frame.items():
                # TensorBoard's x axis is the frame here, so each validation needs a tag of its own.
                tag = f"{scene}/step_{step}"
                for t, values in enumerate(zip(*curves.values(), strict=True), 1):
                    named = {
                        f"per_frame_psnr_{mode}/{tag}": v for mode, v in zip(curves, values, strict=True)
                    }
                    self._tensorboard.write_scalars(t, named)
            if self._images:
                strips = {
                    f"validation/{scene}": image_strip(columns, every=max(1, len(columns["prior"]) // 10))[
                        None
                    ]
                    for scene, columns in videos.items()
                }
                self._tensorboard.write_images(step, strips)
            self._tensorboard.flush()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(f"TensorBoard's events in {self._workdir}")

    def close(self) -> None:
        """Flush and close."""
        if "_tensorboard" in self.__dict__:
            with self._writing():
                self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def require_wandb() -> None:
    """Raise UserError if Weights & Biases is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("config.wandb=True needs the wandb package: pip install wandb, or leave it at False.")


def start_wandb(config: ConfigDict, workdir: Path) -> Any:
    """Return a run of Weights & Biases, resumed if the workdir has one; it must be installed."""
    import wandb

    try:
        return wandb.init(
            project="cvae_jax",
            name=config.name,
            dir=str(workdir),
            config=config.to_dict(),
            id=_run_id(workdir),
            resume="allow",
        )
    except wandb.Error as error:  # no login, or no network
        reason = " ".join(str(error).split())
        raise UserError(
            f"Weights & Biases cannot start ({reason}): run `wandb login`, set WANDB_MODE=offline, or leave "
            "config.wandb at False."
        ) from error


def _run_id(workdir: Path) -> str:
    """Return the run's id, made once and kept in the workdir, so that a resumed run continues it."""
    path = workdir / "wandb_id.txt"
    if not path.exists():
        import uuid

        with replacing(path) as partial:
            partial.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()
