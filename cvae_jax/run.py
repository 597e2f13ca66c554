"""A trained run as an object, for notebooks and programs: docs/python.md is a tutorial.

Inputs and outputs are NumPy arrays. Nothing is printed, and invalid input raises UserError.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import PyTree, UInt8
from ml_collections import ConfigDict

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.config import Components
from cvae_jax.data.clips import no_labels
from cvae_jax.data.load import known_shapes, load_poses, trained_frame_size
from cvae_jax.data.pose import draw_pose
from cvae_jax.generation.inputs import as_array, as_images, as_keypoints, as_vectors
from cvae_jax.generation.samples import check_sampling, make_rollout, sample_videos
from cvae_jax.report import results
from cvae_jax.rollout.chunks import POSTERIOR, PRIOR, Prompt
from cvae_jax.runtime import platform
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.workdir import read_metrics
from cvae_jax.training.checkpoint import Checkpoints, restore_for_evaluation


def load(
    workdir: str | os.PathLike[str],
    checkpoint: str | int = "best",
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """Return the run that train.py wrote to the folder `workdir`.

    Applies the settings that docs/performance.md recommends for CPUs, unless environment variables already
    set them. They take effect only if JAX has not started its backend.

    checkpoint: 'best' (highest validation PSNR), 'last', or a training step. devices: the devices to compute
    on; by default, the first local one.

    Raises UserError if there is no run or no such checkpoint, or if it cannot be read.
    """
    platform.prepare(quiet=True)
    platform.keep_compiled_programs()
    folder = Path(workdir).expanduser().absolute()
    config = config_files.load(folder, defaults.get_config())
    parts = Components.build(config)
    frame_size = trained_frame_size(config, folder)
    with _quiet_orbax(), Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.find(str(checkpoint))
    run = Run(folder, config, parts, step, frame_size, Devices(devices or jax.local_devices()[:1]))
    if shapes := known_shapes(config.data, frame_size):
        _, label_size = shapes
        run._restored((*frame_size, 3) if label_size is None else (label_size,))
    return run


class Run:
    """A trained run with the parameters of one checkpoint; `load` returns it.

    Compiled programs are kept, so a call with the same shapes as an earlier one does not compile again.

    Attributes:
      workdir: the run's folder.
      config: the run's config, a ConfigDict; changes to it have no effect here.
      step: the training step of the checkpoint.
      frame_size: (H, W) of the frames, in pixels.
    """

    def __init__(
        self,
        workdir: Path,
        config: ConfigDict,
        parts: Components,
        step: int,
        frame_size: tuple[int, int],
        devices: Devices,
    ):
        self.workdir, self.config, self.step, self.frame_size = workdir, config, step, frame_size
        self._parts, self._devices, self._poses = parts, devices, load_poses(config.data)
        self._rollouts = {mode: make_rollout(parts, devices, mode) for mode in (PRIOR, POSTERIOR)}
        self._variables: PyTree | None = None  # not restored yet
        self._label_shape: tuple[int, ...] | None = None  # of one label; known once they are restored

    def __repr__(self) -> str:
        height, width = self.frame_size
        return f"<Run {self.workdir}, step {self.step}, frames of {height} x {width} pixels>"

    @property
    def protocol(self) -> dict[str, Any] | None:
        """The 'protocol' entry of eval/results.json (what evaluate.py measured and how), or None if absent.

        The file is read on every access. Raises UserError if it cannot be read.
        """
        folder = self.workdir / results.FOLDER
        if not (folder / results.FILE).exists():
            return None
        return results.read(folder, self.workdir, None)["protocol"]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one per epoch; [] if there are none. The file is read on every access.

        Raises UserError if it cannot be read.
        """
        return read_metrics(self.workdir)

    def predict(
        self,
        first: Any,
        labels: Any,
        samples: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        *,
        index: int = 0,
        progress: bool = False,
    ) -> UInt8[np.ndarray, "samples t h w 3"]:
        """Predict a video from its first frames and its labels, with z from the prior.

        Args:
          first: the n_past = config.n_past context frames, uint8 (n_past, H, W, 3) from 0 to 255; or
            (H, W, 3) where n_past is 1.
          labels: one label per frame of the video, those of the context frames included: images, uint8
            (T, H, W, 3) from 0 to 255, or vectors, float32 (T, A) in the units of the run's data. For a run
            without labels also T, the number of frames.
          samples: the number of videos. A sample depends on its number, not on how many are drawn.
          seed: seed of the noise, from 0 to 2**32 - 1.
          temperature: factor by which the noise is multiplied, at least 0; at 0 all samples are the same.
          index: a second number that determines the noise, from 0 to 2**32 - 1. To reproduce samples of
            generate.py or evaluate.py, pass the clip's number within its split.
          progress: show a progress bar on standard error.

        Returns:
          The videos, uint8 (samples, T, H, W, 3). Each begins with the context frames.

        Raises:
          UserError: for wrong shapes, types or values.
        """
        check_sampling(samples, seed, temperature, index)
        prompt = Prompt("video", self._context(first), self._labels(labels), index)
        return self._videos(PRIOR, prompt, samples, seed, temperature, progress)

    def stream(
        self, first: Any, labels: Any, seed: int = 0, temperature: float = 1.0, *, index: int = 0
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Predict a video frame by frame: iterate over the frames of `predict`'s sample 0.

        Args:
          labels: as in `predict`, or an iterator over single labels. A frame's label is requested only when
            that frame is, so it can depend on earlier frames. The video ends when the labels do.
          first, seed, temperature, index: as in `predict`.

        Returns:
          An iterator over the frames, uint8 (H, W, 3), the context frames first.

        Raises:
          UserError: for wrong shapes, types or values. Labels are checked when they are requested.
        """
        check_sampling(1, seed, temperature, index)
        given = self._context(first)
        one_by_one = self._labels(labels) if isinstance(labels, int | np.integer) else labels
        if not isinstance(one_by_one, Iterable):
            raise UserError(f"labels is a {type(labels).__name__}; give an array or an iterator of labels.")
        checked = (self._labels(label, f"label {t}", ()) for t, label in enumerate(one_by_one))
        return self._stream(given, checked, seed, temperature, index)

    def reconstruct(
        self, frames: Any, labels: Any, seed: int = 0, *, index: int = 0, progress: bool = False
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Reconstruct a video with z from the posterior, which sees each frame before it is predicted.

        The result is not a prediction: it shows how much information about a frame z can carry.

        Args:
          frames: the true video, uint8 (T, H, W, 3) from 0 to 255.
          labels, seed, index, progress: as in `predict`.

        Returns:
          The video, uint8 (T, H, W, 3), the context frames first.

        Raises:
          UserError: for wrong shapes, types or values.
        """
        check_sampling(1, seed, 1.0, index)
        video = as_images("frames", frames, (None, *self.frame_size, 3))
        given = self._labels(labels)
        if len(video) != len(given):
            raise UserError(
                f"frames and labels have the lengths {len(video)} and {len(given)}; give equal ones."
            )
        prompt = Prompt("video", video[: self._parts.n_past], given, index, video)
        return self._videos(POSTERIOR, prompt, 1, seed, 1.0, progress)[0]

    def draw_pose(self, keypoints: Any) -> UInt8[np.ndarray, "*t h w 3"]:
        """Draw label images from poses, in the same style as the labels that the run was trained on.

        Args:
          keypoints: (33, 2) of one pose, or (T, 33, 2): x and y of MediaPipe's landmarks, in the order of
            `cvae_jax.data.pose.LANDMARKS`, as fractions of the frame's width and height. They may lie outside
            the frame; NaN stands for those that are not known. Only USED_LANDMARKS of that module are drawn.

        Returns:
          The label images, uint8 (H, W, 3) or (T, H, W, 3).

        Raises:
          UserError: for wrong shapes or values, and for a run whose labels are not drawn from keypoints.
        """
        name = self.config.data.name
        known = self._poses
        if known is None:
            raise UserError(
                f"The data set {name} of this run has no keypoints, so its labels cannot be drawn from "
                "poses: make them the way the data set's labels were made."
            )
        points = as_keypoints("keypoints", keypoints)
        poses = points.reshape(-1, *points.shape[-2:])
        drawn = np.array(
            [draw_pose(pose, frame_size=self.frame_size, style=known.style) for pose in poses], np.uint8
        )
        return drawn.reshape(*points.shape[:-2], *self.frame_size, 3)

    def _videos(
        self, mode: str, prompt: Prompt, samples: int, seed: int, temperature: float, progress: bool
    ) -> UInt8[np.ndarray, "samples t h w 3"]:
        if len(prompt.labels) <= self._parts.n_past:
            raise UserError(
                f"labels has the length {len(prompt.labels)}; give one label per frame, more than the "
                f"n_past={self._parts.n_past} context frames."
            )
        variables = self._restored(prompt.labels.shape[1:])
        rollout = self._rollouts[mode]
        drawn = sample_videos(rollout, variables, [prompt], samples, seed, temperature, progress)
        return np.stack([one.frames for one in drawn])

    def _stream(
        self, given: np.ndarray, labels: Iterator[np.ndarray], seed: int, temperature: float, index: int
    ) -> Iterator[np.ndarray]:
        known = []
        for frame, label in zip(given, labels):
            variables = self._restored(label.shape)
            known.append(label)
            yield frame.copy()
        if len(known) == len(given):
            prompt = Prompt("video", given, np.stack(known), index)
            yield from self._rollouts[PRIOR].stream(variables, prompt, labels, seed, temperature)

    def _context(self, first: Any) -> np.ndarray:
        frames, shape = as_array("first", first), (self._parts.n_past, *self.frame_size, 3)
        only_one = shape[0] == 1 and frames.ndim == 3
        return as_images("first", frames, shape[1:] if only_one else shape).reshape(shape)

    def _labels(
        self, labels: Any, name: str = "labels", before: tuple[int | None, ...] = (None,)
    ) -> np.ndarray:
        """Return labels as the model takes them; before: the shape before that of one label."""
        shape = self._label_shape
        if before and shape in (None, (0,)) and isinstance(labels, int | np.integer) and labels >= 0:
            labels = no_labels(int(labels))
        found = as_array(name, labels)
        if shape is None:  # the data set does not say, so the first labels do
            vectors = found.ndim == len(before) + 1
            shape = found.shape[-1:] if vectors else (*self.frame_size, 3)
        return (as_vectors if len(shape) == 1 else as_images)(name, found, (*before, *shape))

    def _restored(self, label_shape: tuple[int, ...]) -> PyTree:
        """Return the variables, restored on the first call; label_shape: of one label."""
        if self._variables is None:
            label_size = None if len(label_shape) == 3 else label_shape[0]
            with _quiet_orbax():
                variables, *_ = restore_for_evaluation(
                    self._parts.model,
                    self.workdir,
                    str(self.step),
                    self.frame_size,
                    label_size,
                    averaged=self._parts.optimizer.averages,
                )
            self._variables, self._label_shape = self._devices.place(variables), label_shape
        return self._variables


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Silence absl's logging within the context: Orbax warns whenever it opens a folder read-only."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
