"""Saving and restoring a run: the only use of orbax.

A checkpoint is the whole train state on the host (so it does not depend on the device count) and a small
JSON: how far the run is and the sums of the epoch in progress. Orbax writes in the background into a
temporary folder and renames it when complete, so a kill leaves the previous checkpoint intact.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from cvae_jax.config import Components
from cvae_jax.errors import UserError
from cvae_jax.models.cvae import init_variables
from cvae_jax.train_state import TrainState

FOLDER = "checkpoints"
BEST = "val_psnr_prior"
_SAVING = threading.Lock()


@dataclasses.dataclass
class Progress:
    """Where a run stands: `batch` batches of epoch `epoch` are done, with these sums of metrics."""

    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a workdir: the newest `keep`, the best by prior PSNR, and those of `periodic`.

    Args:
      workdir: the run's folder; checkpoints lie in its checkpoints/.
      keep: how many of the newest to keep.
      period: steps between checkpoints kept for ever; 0 for none.
      read_only: only restore.
    """

    # Whose save may still be in flight. Runs side by side in a process save one after the other: orbax makes
    # its folders in the background under counters that the whole process shares.
    _latest: Checkpoints | None = None

    def __init__(self, workdir: Path, keep: int = 1, period: int = 0, read_only: bool = False):
        self.folder = workdir.absolute() / FOLDER
        kept = [
            policies.LatestN(keep),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics[BEST],
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if period:
            kept.append(policies.EveryNSteps(period))
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=lambda metrics: metrics[BEST],
                best_mode="max",
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: TrainState, progress: Progress, metrics: dict[str, float] | None
    ) -> None:
        """Start writing a checkpoint; `metrics` holds 'val_psnr_prior' where the epoch was validated."""
        if step in self._manager.all_steps():
            return
        with _SAVING:
            if Checkpoints._latest not in (None, self):
                Checkpoints._latest.wait()
            Checkpoints._latest = self
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(jax.device_get(state)),
                    progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
                ),
                metrics=metrics,
                force=True,
            )

    def restore(self, template: TrainState, step: int) -> tuple[TrainState, Progress]:
        """Return the state and progress of a step; the template gives the shapes.

        Raises UserError when the checkpoint cannot be read into the template.
        """
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.device_get(template)),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The checkpoint {self.folder / str(step)} cannot be restored ({reason}): it is damaged, or "
                "another revision of the program wrote it; use that one, or give --checkpoint another step."
            ) from None
        return restored["state"], Progress(**restored["progress"])

    def find(self, which: str) -> int:
        """Return the step that 'best', 'last' or a number names; UserError where there is none."""
        steps = self.steps
        if not steps:
            raise UserError(f"There is no checkpoint in {self.folder}; let train.py finish an epoch.")
        if which == "last":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            return steps[-1] if best is None else best
        if which.isdigit() and int(which) in steps:
            return int(which)
        raise UserError(
            f"--checkpoint is {which!r}; choose best, last or one of the steps "
            f"{', '.join(map(str, steps))} in {self.folder}."
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and release the manager."""
        with _SAVING:
            if Checkpoints._latest is self:
                Checkpoints._latest = None
            self._manager.close()


def restore_for_evaluation(
    parts: Components,
    workdir: Path,
    which: str,
    frame_size: tuple[int, int],
    label_size: int | None = None,
) -> tuple[dict, int, Progress]:
    """Return the variables of a checkpoint to evaluate with, its step, and how far training was.

    which: 'best', 'last' or a step. label_size: see `init_variables`. The averaged parameters are taken where
    they are kept. Raises UserError where there is no such checkpoint or it cannot be read.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.find(which)
        variables = init_variables(parts.model, 0, frame_size, label_size)
        template = TrainState.create(variables, parts.optimizer)
        state, progress = checkpoints.restore(template, step)
    return state.evaluation_variables, step, progress


def checkpoint_metrics(row: dict[str, Any]) -> dict[str, float] | None:
    """Return the part of an epoch's row by which the best checkpoint is chosen, if it was validated."""
    return None if row[BEST] is None else {BEST: row[BEST]}
