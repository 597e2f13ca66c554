"""Saving and restoring a run: the only use of orbax.

A checkpoint is the whole train state (independent of the number of devices), how far the run is, and the sums
of the epoch in progress. Orbax writes it in the background into a temporary folder, renamed when complete: a
kill leaves the one before intact. Digests of all files are compared before a checkpoint is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from cvae_jax.models.interface import Variables, VideoModel, variable_shapes
from cvae_jax.runtime.errors import DamagedError, UserError
from cvae_jax.runtime.files import writing
from cvae_jax.runtime.progress import warn
from cvae_jax.training import checkpoint_folder, digests
from cvae_jax.training.checkpoint_folder import DAMAGED, FOLDER, HALF_WRITTEN, NONE_LEFT, SET_ASIDE
from cvae_jax.training.state import TrainState

BEST = "val_psnr_prior"
_SAVING = threading.RLock()


@dataclasses.dataclass
class Progress:
    """Where a run stands: `batch` batches of epoch `epoch` are done, with these sums of metrics."""

    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Return False: `cvae_jax.runtime.preemption` asks, in all processes equally often."""
        return False


class Checkpoints:
    """The checkpoints of a workdir: the newest `keep`, the best by prior PSNR, and one every `period` steps.

    Args:
      workdir: the run's folder; checkpoints lie in its checkpoints/.
      keep: how many of the newest to keep.
      period: steps between checkpoints kept for ever; 0 for none.
      read_only: only restore.

    A disk that is full, read-only or failing raises StorageError, which names the step that it concerns: of
    writing in the background in the next call of `save`, `wait` or `close`. Other checkpoints stay as they
    are, and `close` removes what was half written.

    Raises DamagedError where the metrics of a checkpoint are damaged, which orbax reads when it opens the
    folder, and nothing may be written or no other checkpoint is left; otherwise it is set aside.
    """

    # Whose save may still be in flight. Runs side by side in a process save one after the other: orbax makes
    # its folders in the background under counters that the whole process shares.
    _latest: Checkpoints | None = None

    def __init__(self, workdir: Path, keep: int = 1, period: int = 0, read_only: bool = False):
        self._workdir, self._read_only = workdir.absolute(), read_only
        self.folder = workdir.absolute() / FOLDER
        self._latest_step: int | None = None  # that was saved
        if not read_only:
            checkpoint_folder.settle_replaced(self._workdir)
        checkpoint_folder.refuse_damaged_metrics(self._workdir, read_only)
        psnr = lambda metrics: metrics[BEST]  # noqa: E731
        best = policies.BestN(get_metric_fn=psnr, n=1, keep_checkpoints_without_metrics=False)
        kept = [policies.LatestN(keep), best]
        if period:
            kept.append(policies.EveryNSteps(period))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=psnr,
            best_mode="max",
            create=False,  # which orbax cannot in one process of several
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
        )
        with self._writing():
            if not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = _Manager(self.folder, options=options)

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: TrainState,
        progress: Progress,
        metrics: dict[str, float] | None,
        replace: bool = False,
    ) -> None:
        """Start writing a checkpoint; `metrics` holds 'val_psnr_prior' where the epoch was validated.

        replace: write it even if there is one of that step, which is kept until the new one is complete.
        """
        if step in self._manager.all_steps() and not replace:
            return
        with _SAVING:
            if Checkpoints._latest not in (None, self):
                with contextlib.suppress(Exception):  # its own run meets the error in `wait` or `close`
                    Checkpoints._latest.wait()
            self.wait()
            Checkpoints._latest, self._latest_step = self, step
            with self._writing():
                if step in self._manager.all_steps():
                    checkpoint_folder.move_to_replace(self._folder_of(step))
                    self._manager.reload()
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(jax.device_get(state)),
                        progress=ocp.args.JsonSave(dataclasses.asdict(progress) | {"format": digests.FORMAT}),
                    ),
                    metrics=metrics,
                    force=True,
                )

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        step = self._latest_step
        return writing(self.folder if step is None else f"the checkpoint of step {step} in {self.folder}")

    def _write_digests(self) -> None:
        """Complete the checkpoint that is being written; orbax calls this before it renames the folder."""
        (partial,) = self.folder.glob(HALF_WRITTEN)
        digests.write(partial)

    def _folder_of(self, step: int) -> Path:
        return self.folder / str(step)

    def set_newer_aside(self, step: int, damaged: dict[int, DamagedError]) -> None:
        """Rename the folders of checkpoints after a step, some of which are damaged, and say so."""
        for newer in [other for other in self.steps if other > step]:
            what = damaged.get(newer, f"The checkpoint {self._folder_of(newer)} is newer than step {step}.")
            suffix = DAMAGED if newer in damaged else SET_ASIDE
            kept = checkpoint_folder.set_aside(self._folder_of(newer), suffix)
            warn(f"{what} It has been moved to {kept}; training resumes from step {step}.")
        self._manager.reload()

    def restore(self, template: TrainState, step: int) -> tuple[TrainState, Progress]:
        """Return the state and progress of a step; the template gives the shapes.

        Raises DamagedError where the checkpoint is damaged, and UserError where it cannot be read into the
        template.
        """
        return self._restore(step, ocp.args.StandardRestore(template))

    def restore_parameters(self, shapes: Variables, step: int, averaged: bool) -> tuple[Variables, Progress]:
        """Return the variables to evaluate with and the progress of a step, without the optimizer's state.

        averaged: take the averaged parameters. Raises as `restore` does.
        """
        name = "ema" if averaged else "params"
        wanted = {name: shapes["params"], "batch_stats": shapes["batch_stats"]}
        try:
            restored, progress = self._restore(step, ocp.args.PyTreeRestore(wanted, partial_restore=True))
        except DamagedError as error:
            raise DamagedError(
                self._folder_of(step), error.found, self.advice(step, "--checkpoint")
            ) from None
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
                    f"The checkpoint {self.folder / str(step)} belongs to another model than the config "
                    f"describes: for {name} of shape {expected.shape} it holds {stored}; leave config.model "
                    "as it was in training."
                )

    def advice(self, step: int, flag: str) -> str:
        """Return how to use another checkpoint than that of a step."""
        others = [other for other in self.steps if other != step]
        sound = [str(other) for other in others if digests.damage(self._folder_of(other)) is None]
        return f"choose another one with {flag}: {', '.join(sound)}" if sound else NONE_LEFT

    def _restore(self, step: int, state: ocp.args.CheckpointArgs) -> tuple[Any, Progress]:
        try:
            return self._read(step, state)
        except UserError:
            time.sleep(self._read_only)  # a second, in which training may delete what it has begun to delete
            if self._read_only and not self._folder_of(step).exists():
                raise UserError(
                    f"Training has deleted the checkpoint {self._folder_of(step)} in the meantime; run the "
                    "command again."
                ) from None
            raise

    def _read(self, step: int, state: ocp.args.CheckpointArgs) -> tuple[Any, Progress]:
        folder = self._folder_of(step)
        found = digests.damage(folder)
        if found:
            raise DamagedError(folder, found)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=state, progress=ocp.args.JsonRestore())
            )
        except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
            if not (folder / digests.FILE).exists() and any(self.folder.glob(f"*/{digests.FILE}")):
                raise DamagedError(folder, digests.Damage(digests.FILE, "missing")) from None
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The checkpoint {folder} cannot be restored ({reason}): it is damaged, or "
                "another version of the program wrote it; use that version, or another checkpoint."
            ) from None
        progress = dict(restored["progress"])
        if progress.pop("format", 1) > 1 and not (folder / digests.FILE).exists():
            raise DamagedError(folder, digests.Damage(digests.FILE, "missing"))
        return restored["state"], Progress(**progress)

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
        if which.isdecimal() and int(which) in steps:
            return int(which)
        raise UserError(
            f"There is no checkpoint {which!r} in {self.folder}; choose best, last or one of the steps "
            f"{', '.join(map(str, steps))}."
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        with _SAVING, self._writing():
            self._manager.wait_until_finished()
            if not self._read_only:
                checkpoint_folder.settle_replaced(self._workdir)

    def close(self) -> None:
        """Finish writing and release the manager."""
        with _SAVING, self._writing(), contextlib.ExitStack() as stack:
            if Checkpoints._latest is self:
                Checkpoints._latest = None
            if not self._read_only:
                stack.callback(checkpoint_folder.settle_replaced, self._workdir)
                stack.callback(checkpoint_folder.remove_half_written, self._workdir)
            stack.callback(self._manager.close)
            self._manager.wait_until_finished()  # once its error has been raised, `close` waits for the rest


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
