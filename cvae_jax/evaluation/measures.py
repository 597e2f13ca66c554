"""Metrics of predicted frames, measured on the devices in chunks and for many samples of a clip at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from cvae_jax.data.clips import Recording
from cvae_jax.metrics import DILATION, DRAWN, person_mask, psnr_per_frame, ssim_per_frame
from cvae_jax.perceptual import lpips
from cvae_jax.perceptual.weights import INSTALL, is_installed
from cvae_jax.report.columns import NOT_MEASURED
from cvae_jax.rollout.scan import as_float
from cvae_jax.runtime import processes
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError

_PERSON = (
    f"over the pixels of the label image brighter than {DRAWN} in a channel, dilated by a square that "
    f"reaches 1/{round(1 / DILATION)} of the frame's shorter side (at least a pixel) to each side; frames "
    "without any are left out"
)


@dataclasses.dataclass(frozen=True)
class Measures:
    """Which metrics are measured besides PSNR; `cvae_jax.report.columns` defines them.

    Attributes:
      ssim: the structural similarity.
      person: PSNR, and SSIM if it is measured, of the person of a pose label (`metrics.person_mask`).
      lpips: LPIPS; it needs the package that `perceptual.lpips` names.
    """

    ssim: bool = False
    person: bool = False
    lpips: bool = False

    @property
    def weights(self) -> PyTree:
        """What `of` needs besides a batch: the weights of LPIPS, or {}."""
        return lpips.load_weights() if self.lpips else {}

    def mapped(self, devices: Devices) -> Callable[[dict], dict]:
        """Return the mapped function that measures batches on the devices: a `rollout.chunks.Measure`.

        One program serves every model and mode.
        """
        weights = devices.place(self.weights)
        mapped = devices.map_clips(lambda weights, batch, _: self.of(weights, batch))
        return lambda batch: mapped(weights, batch, {})

    def of(self, weights: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
        """Return {metric: float32 (b, n)} of a batch as `ChunkedRollout` describes it.

        The true frames are processed once for all videos that belong to them. A CPU takes one video at a
        time, which bounds memory and fits its caches.
        """
        over = lax.map if jax.default_backend() == "cpu" else lambda f, x: jax.vmap(f)(x)
        truth = over(lambda x: self._of_truth(weights, *x), (batch["videos"], batch["labels"]))

        def of_one(x: tuple[Array, Array]) -> dict[str, Array]:
            frames, owner = x
            return self._compare(weights, frames, jax.tree.map(lambda leaf: leaf[owner], truth))

        return over(of_one, (batch["frames"], batch["owner"]))

    def _of_truth(self, weights: PyTree, frames: Array, labels: Array) -> dict[str, PyTree]:
        video = as_float(frames)
        truth: dict[str, PyTree] = {"video": video}
        if self.person:
            truth["mask"] = person_mask(as_float(labels))
        if self.lpips:
            truth["features"] = lpips.features(weights, video)
        return truth

    def _compare(self, weights: PyTree, frames: Array, truth: dict[str, PyTree]) -> dict[str, Array]:
        video = truth["video"]
        found = {"psnr": psnr_per_frame(frames, video)}
        if self.ssim:
            found["ssim"] = ssim_per_frame(frames, video)
        if self.lpips:
            own = lpips.features(weights, frames)
            found["lpips"] = lpips.distance(weights, own, truth["features"])
        if self.person:
            found["psnr_person"] = psnr_per_frame(frames, video, truth["mask"])
            if self.ssim:
                found["ssim_person"] = ssim_per_frame(frames, video, truth["mask"])
        return {name: values.astype(jnp.float32) for name, values in found.items()}


def choose(recordings: list[Recording], wants_lpips: bool | None) -> tuple[Measures, dict[str, str]]:
    """Return what to measure on recordings, and {metric: its definition, or why it is not measured}.

    wants_lpips: the field `config.eval.lpips`. Raises UserError if LPIPS is required and frames are too
    small for it.
    """
    height, width = recordings[0].frames.shape[1:3]
    person = recordings[0].image_labels
    small = f"the frames are {height} x {width} and it needs {lpips.LEAST_SIZE} x {lpips.LEAST_SIZE}"
    why_not = None
    if wants_lpips is False:
        why_not = "config.eval.lpips is False"
    elif min(height, width) < lpips.LEAST_SIZE:
        why_not = small
    elif not is_installed(lpips.PACKAGE):
        why_not = f"{lpips.PACKAGE.replace('_', '-')} is not installed (to install it: {INSTALL})"
    if wants_lpips and why_not == small:
        raise UserError(f"config.eval.lpips is True, but {small}: set it to False.")
    no_person = f"{NOT_MEASURED}: labels are not images"
    definitions = {
        "lpips": lpips.DESCRIPTION if why_not is None else f"{NOT_MEASURED}: {why_not}",
        "psnr_person": _PERSON if person else no_person,
        "ssim_person": "as psnr_person, on pixels where the window fits" if person else no_person,
    }
    found = Measures(ssim=True, person=person, lpips=why_not is None)
    processes.require_same("metrics installed", repr(found))
    return found, definitions
