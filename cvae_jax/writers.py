"""Where a run's numbers go besides metrics.jsonl: TensorBoard, and Weights & Biases if asked for."""

from __future__ import annotations

import functools
from pathlib import Path

from ml_collections import ConfigDict

from cvae_jax.errors import UserError
from cvae_jax.report.figures import image_strip
from cvae_jax.validation import Scored


class Writers:
    """Scalars of every epoch and film strips of every validation.

    Raises UserError when Weights & Biases is asked for but not installed.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self._images = config.log.images
        self._wandb = _start_wandb(config, workdir) if config.wandb else None
        self._workdir = workdir

    @functools.cached_property
    def _tensorboard(self):
        # Not before there is something to write: it brings TensorFlow along, which takes seconds.
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(self._workdir))

    def epoch(self, row: dict) -> None:
        """Write an epoch's row of metrics.jsonl; scenes become one scalar each."""
        scalars = {}
        for name, value in row.items():
            if isinstance(value, dict):
                scalars |= {f"{name}/{key}": entry for key, entry in value.items()}
            elif value is not None and name != "step":
                scalars[name] = value
        self._tensorboard.write_scalars(row["step"], scalars)
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(scalars, step=row["step"])

    def validation(self, step: int, scored: dict[str, list[Scored]]) -> None:
        """Write the per-frame PSNR curves and a film strip per scene: truth, prior, posterior, label."""
        images = {}
        for prior, posterior in zip(scored["prior"], scored["posterior"], strict=True):
            recording = prior.recording
            # TensorBoard's x axis is the frame here, so each validation needs a tag of its own.
            tag = f"{recording.scene}/step_{step}"
            curves = zip(prior.scores["psnr"], posterior.scores["psnr"], strict=True)
            for t, (z_prior, z_posterior) in enumerate(curves, start=1):
                self._tensorboard.write_scalars(
                    t,
                    {
                        f"per_frame_psnr_prior/{tag}": z_prior,
                        f"per_frame_psnr_posterior/{tag}": z_posterior,
                    },
                )
            images[recording.scene] = image_strip(
                {
                    "truth": recording.frames[1:],
                    "prior": prior.frames,
                    "posterior": posterior.frames,
                    "label": recording.labels[1:],
                },
                every=max(1, len(prior.frames) // 10),
            )
        if self._images:
            self._tensorboard.write_images(
                step, {f"validation/{scene}": strip[None] for scene, strip in images.items()}
            )
        self._tensorboard.flush()

    def close(self) -> None:
        """Flush and close."""
        if "_tensorboard" in self.__dict__:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(config: ConfigDict, workdir: Path):
    try:
        import wandb
    except ImportError:
        raise UserError(
            "config.wandb=True needs the wandb package: pip install wandb, or leave it at False."
        ) from None
    return wandb.init(
        project="cvae_jax", name=config.name, dir=str(workdir), config=config.to_dict(),
        id=_run_id(workdir), resume="allow",
    )  # fmt: skip


def _run_id(workdir: Path) -> str:
    """Return the run's id, made once and kept in the workdir, so that a resumed run goes on in it."""
    path = workdir / "wandb_id.txt"
    if not path.exists():
        import uuid

        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()
