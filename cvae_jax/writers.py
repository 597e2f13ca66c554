"""Where a run's numbers go besides metrics.jsonl: TensorBoard, and Weights & Biases if asked for."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
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
        """Write per scene the per-frame PSNR, the mean over its clips, and a film strip of the first of them.

        The strip has truth, prior, posterior and, where it is an image, the label.
        """
        images = {}
        for scene in dict.fromkeys(s.recording.scene for s in scored["prior"]):
            own = {mode: [s for s in clips if s.recording.scene == scene] for mode, clips in scored.items()}
            # TensorBoard's x axis is the frame here, so each validation needs a tag of its own.
            tag = f"{scene}/step_{step}"
            for t in range(max(len(s.scores["psnr"]) for s in own["prior"])):
                values = {
                    f"per_frame_psnr_{mode}/{tag}": np.mean(
                        [s.scores["psnr"][t] for s in clips if t < len(s.scores["psnr"])]
                    )
                    for mode, clips in own.items()
                }
                self._tensorboard.write_scalars(t + 1, values)
            prior, posterior = own["prior"][0], own["posterior"][0]
            recording, count = prior.recording, len(prior.frames)
            columns = {
                "truth": recording.frames[-count:],
                "prior": prior.frames,
                "posterior": posterior.frames,
            }
            if recording.image_labels:
                columns["label"] = recording.labels[-count:]
            images[scene] = image_strip(columns, every=max(1, count // 10))
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
        project="cvae_jax",
        name=config.name,
        dir=str(workdir),
        config=config.to_dict(),
        id=_run_id(workdir),
        resume="allow",
    )


def _run_id(workdir: Path) -> str:
    """Return the run's id, made once and kept in the workdir, so that a resumed run goes on in it."""
    path = workdir / "wandb_id.txt"
    if not path.exists():
        import uuid

        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()
