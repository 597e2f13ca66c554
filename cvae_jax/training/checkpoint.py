"""Saving and restoring a run: the only use of orbax.

A checkpoint is the whole train state on the host (so it does not depend on the device count) and a small
JSON: how far the run is and the sums of the epoch in progress. Orbax writes in the background into a
temporary folder and renames it when complete, so a kill leaves the previous checkpoint intact.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from cvae_jax.models.interface import Variables, VideoModel, variable_shapes
from cvae_jax.runtime.errors import UserError
from cvae_jax.training.state import TrainState

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
    """The checkpoints of a workdir: the newest `keep`, the best by prior PSNR, and one every `period` steps.

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
                with contextlib.suppress(Exception):  # its own run meets the error in `wait` or `close`
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
        return self._restore(step, ocp.args.StandardRestore(template))

    def restore_parameters(self, shapes: Variables, step: int, averaged: bool) -> tuple[Variables, Progress]:
        """Return the variables to evaluate with and the progress of a step, without the optimizer's state.

        averaged: take the averaged parameters. Raises UserError as `restore` does.
        """
        name = "ema" if averaged else "params"
        wanted = {name: shapes["params"], "batch_stats": shapes["batch_stats"]}
        restored, progress = self._restore(step, ocp.args.PyTreeRestore(wanted, partial_restore=True))
        self._refuse_other_shapes(restored, wanted, step)
        return {"params": restored[name], "batch_stats": restored["batch_stats"]}, progress

    def _refuse_other_shapes(self, restored: PyTree, wanted: PyTree, step: int) -> None:
        """Raise UserError for another model's arrays.

        A partial restore returns whatever is stored under a name, and the template itself where nothing is.
        """
        found = jax.tree_util.tree_leaves_with_path(restored)
        for (path, leaf), expected in zip(found, jax.tree.leaves(wanted), strict=True):
            missing = isinstance(leaf, jax.ShapeDtypeStruct)
            if missing or leaf.shape != expected.shape:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                stored = "nothing" if missing else f"an array of shape {leaf.shape}"
                raise UserError(
                    f"The checkpoint {self.folder / str(step)} is of another model than the config "
                    f"describes: for {name} of shape {expected.shape} it holds {stored}; leave config.model "
                    "as the run was trained with it."
                )

    def _restore(self, step: int, state: ocp.args.CheckpointArgs) -> tuple[Any, Progress]:
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=state, progress=ocp.args.JsonRestore())
            )
        except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The checkpoint {self.folder / str(step)} cannot be restored ({reason}): it is damaged, or "
                "another version of the program wrote it; use that version, or another checkpoint."
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


def has_checkpoint(workdir: Path) -> bool:
    """Return whether a workdir holds a complete checkpoint (a folder named by its step alone)."""
    return any(path.name.isdecimal() for path in (workdir / FOLDER).glob("*"))


def restore_for_evaluation(
    model: VideoModel,
    workdir: Path,
    which: str,
    frame_size: tuple[int, int],
    label_size: int | None,
    averaged: bool,
) -> tuple[Variables, int, Progress]:
    """Return the variables of a checkpoint to evaluate with, its step, and how far training was.

    which: 'best', 'last' or a step. label_size: see `VideoModel.init`. averaged: whether to take the averaged
    parameters. Raises UserError where there is no such checkpoint or it cannot be read.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.find(which)
        shapes = variable_shapes(model, frame_size, label_size)
        variables, progress = checkpoints.restore_parameters(shapes, step, averaged)
    return variables, step, progress


def checkpoint_metrics(row: dict[str, Any]) -> dict[str, float] | None:
    """Return the part of an epoch's row by which the best checkpoint is chosen, if it was validated."""
    return None if row[BEST] is None else {BEST: row[BEST]}
