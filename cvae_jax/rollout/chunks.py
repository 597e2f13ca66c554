"""Long videos rolled out in chunks, in memory that does not grow with their length.

The one driver that validation, evaluation and generation share. A rollout is a sequence of calls of one
compiled program, each over at most `chunk` frames. The model's constants and carry stay on the devices
between the calls; what is kept of the steps leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from cvae_jax.data.clips import extend
from cvae_jax.models.interface import VideoModel
from cvae_jax.rollout.programs import MODES, POSTERIOR, PRIOR, Keep, make_advance, make_begin
from cvae_jax.rollout.prompts import TRUTH, Prompt, parts, true_frames, truth
from cvae_jax.runtime.devices import Devices

Measure = Callable[[dict[str, Array]], dict[str, Array]]
"""A mapped function of a chunk's frames (see `ChunkedRollout`) -> values of each frame (b, n)."""


class Rolled(NamedTuple):
    """One sample of one prompt, its P = T - n_past predicted frames.

    Attributes:
      prompt, sample: their numbers.
      frames: uint8 (P, H, W, 3), if asked for.
      values: what was kept of each frame, (P, ...).
      sums: what was summed over the frames.
    """

    prompt: int
    sample: int
    frames: np.ndarray | None
    values: dict[str, np.ndarray]
    sums: dict[str, np.ndarray]


class ChunkedRollout:
    """Autoregressive rollouts of a model on the devices.

    Mode 'prior' draws z from the model's prior, 'posterior' from the posterior of the very frame that is
    predicted. The context frames are run through the model first. Noise is addressed by (seed, clip, sample,
    t): it depends neither on batch, chunk and devices, nor on how many samples are drawn.

    Args:
      n_past: number of context frames.
      batch_size: videos rolled out at once.
      chunk: frames per call of the compiled program, at most.
      keep: what to keep of a step besides its frame. Its target is None in the mode 'prior'.
      measure: compares the predicted frames of a chunk with the true ones. It is given arrays on the
        devices: frames float32 (b, n, H, W, 3); the true frames uint8 and their labels of each prompt once
        (u, n, ...), so that what is computed of them is shared by the samples of a prompt; and owner int32
        (b,), which of the u prompts each video belongs to.
      noise_correlation: the correlation, in [0, 1), of the prior's noise in successive frames.
    """

    def __init__(
        self,
        model: VideoModel,
        devices: Devices,
        mode: str,
        *,
        n_past: int,
        batch_size: int,
        chunk: int,
        keep: Keep = lambda outputs, target: ({}, {}),
        measure: Measure | None = None,
        noise_correlation: float = 0.0,
    ):
        assert mode in MODES, mode
        self._devices, self._n_past = devices, n_past
        self._batch_size, self._chunk = batch_size, chunk
        self._mode, self._measure = mode, measure
        self._begin = devices.map_clips(make_begin(model))
        advance = make_advance(model, mode, n_past, keep, measure is not None, noise_correlation)
        self._advance = devices.map_clips(advance)

    def run(
        self,
        variables: PyTree,
        prompts: Sequence[Prompt],
        rows: Sequence[tuple[int, int]],
        seed: int,
        temperature: float = 1.0,
        frames_of: Collection[int] | None = None,
        progress: Callable[[int], Any] = lambda frames: None,
    ) -> Iterator[Rolled]:
        """Yield the rollout of each row (prompt, sample), in order.

        All prompts have one frame size, and with `measure` or the posterior a true video. Where the rows of
        a prompt follow each other, `measure` has the least to do. temperature multiplies the prior's noise.
        frames_of: the samples whose frames are brought from the devices; None: all. progress is called after
        each call with the number of frames it has predicted.
        """
        devices = self._devices
        size = devices.padded(min(self._batch_size, len(rows)))
        share, count = devices.share(size), len(devices.devices)
        longest = max(len(prompts[p].labels) for p, _ in rows) - self._n_past
        chunk = -(-longest // -(-longest // self._chunk))
        variables, controls = devices.place(variables), _controls(seed, temperature)
        batches = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        filled = [[*own, *[own[0]] * (size - len(own))] for own in batches]
        most = max(len({p for p, _ in part}) for padded in filled for part in parts(padded, len(devices)))
        for own, padded in zip(batches, filled, strict=True):
            batch = self._batch(prompts, padded, len(own), share)
            if self._measure is not None:
                batch |= truth(prompts, [p for p, _ in padded[share]], count, most, batch["labels"].shape[1])
            wanted = frames_of is None or any(sample in frames_of for _, sample in own)
            left = np.array([len(prompts[p].labels) - self._n_past for p, _ in own])
            rolled = self._roll(variables, batch, controls, chunk, wanted, left, progress)
            frames, values, sums = devices.join(rolled)
            for row, ((p, sample), predicted) in enumerate(zip(own, left.tolist(), strict=True)):
                kept = frames if frames_of is None or sample in frames_of else None
                yield Rolled(
                    p,
                    sample,
                    None if kept is None else kept[row, :predicted],
                    {name: value[row, :predicted] for name, value in values.items()},
                    {name: value[row] for name, value in sums.items()},
                )

    def stream(
        self,
        variables: PyTree,
        prompt: Prompt,
        labels: Iterable[np.ndarray],
        seed: int,
        temperature: float = 1.0,
        sample: int = 0,
    ) -> Iterator[np.ndarray]:
        """Yield the predicted frames of one sample one at a time, uint8 (H, W, 3), in the mode 'prior'.

        They are those that `run` predicts, from the same device functions, one step per call.

        prompt: its labels are only those of its context frames. labels: those of the frames to predict; each
        is taken when its frame is asked for.
        """
        assert self._mode == PRIOR and self._measure is None, "nothing is known of the frames to come"
        devices = self._devices
        size = devices.padded(1)
        variables, controls = devices.place(variables), _controls(seed, temperature)
        batch = self._batch([prompt], [(0, sample)] * size, 1, devices.share(size))
        rollout = self._start(variables, batch, controls)
        before = batch["labels"][:, -1:]
        for start, label in enumerate(labels, self._n_past - 1):
            after = np.broadcast_to(label, (len(before), 1, *label.shape))
            window = devices.split({"labels": np.concatenate([before, after], axis=1)})
            out = self._advance(variables, rollout | window, controls | {"start": np.int32(start)})
            rollout |= {"state": out["state"], "noise": out["noise"]}
            yield np.array(devices.fetch(out["pixels"])[0, 0])
            before = after

    def _batch(
        self, prompts: Sequence[Prompt], rows: list[tuple[int, int]], real: int, share: slice
    ) -> dict[str, Any]:
        """Return this process's share of the batch of some rows; those after the first `real` are filling."""
        longest = max(len(prompts[p].labels) for p, _ in rows)
        own = [prompts[p] for p, _ in rows[share]]
        batch = {
            "given": np.stack([prompt.given for prompt in own]),
            "labels": np.stack([extend(prompt.labels, longest) for prompt in own]),
            "mask": (np.arange(len(rows)) < real).astype(np.float32)[share],
            "index": np.array([prompt.index for prompt in own], np.uint32),
            "sample": np.array([sample for _, sample in rows[share]], np.uint32),
            "length": np.array([len(prompt.labels) for prompt in own], np.int32),
        }
        if self._mode == POSTERIOR:
            batch["frames"] = np.stack([extend(true_frames(prompt), longest) for prompt in own])
        return batch

    def _start(self, variables: PyTree, batch: dict[str, np.ndarray], controls: dict) -> dict[str, Any]:
        """Return what all steps of a batch are given: who its clips are, constants, state and noise."""
        clips = self._devices.split({name: batch[name] for name in ("mask", "index", "sample", "length")})
        first = {"given": batch["given"], "labels": batch["labels"][:, : self._n_past]}
        return clips | self._begin(variables, clips | self._devices.split(first), controls)

    def _roll(
        self,
        variables: PyTree,
        batch: dict[str, np.ndarray],
        controls: dict,
        chunk: int,
        with_frames: bool,
        left: np.ndarray,
        progress: Callable[[int], Any],
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return (frames, values, sums) of this process's share; left: frames to predict of all clips."""
        split, fetch = self._devices.split, self._devices.fetch
        rollout = self._start(variables, batch, controls)
        last = batch["labels"].shape[1] - 1
        found: list[dict[str, np.ndarray]] = []
        sums: dict[str, np.ndarray] = {}
        for start in range(self._n_past - 1, last, chunk):
            window = slice(start, start + chunk + 1)
            videos = {name: batch[name][:, window] for name in ("frames", "labels") if name in batch}
            filled = split({name: _filled(video, chunk + 1) for name, video in videos.items()})
            out = self._advance(variables, rollout | filled, controls | {"start": np.int32(start)})
            rollout |= {"state": out["state"], "noise": out["noise"]}
            kept = out["values"] | ({"frames": out["pixels"]} if with_frames else {})
            if self._measure is not None:
                after = slice(start + 1, start + 1 + chunk)
                true = {name: _filled(batch[f"true_{name}"][:, after], chunk) for name in TRUTH}
                seen = split(true | {"owner": batch["owner"]})
                kept |= self._measure(seen | {"frames": out["frames"]})
            found.append(fetch(kept))
            more = fetch(out["sums"])
            sums = jax.tree.map(np.add, sums, more) if sums else more
            progress(int(np.sum(np.clip(left - (start + 1 - self._n_past), 0, chunk))))
        values = {name: np.concatenate([part[name] for part in found], 1) for name in found[0]}
        return values.pop("frames", None), values, sums


def _controls(seed: int, temperature: float) -> dict[str, np.generic]:
    return {"seed": np.uint32(seed), "temperature": np.float32(temperature)}


def _filled(video: np.ndarray, length: int) -> np.ndarray:
    return np.swapaxes(extend(np.swapaxes(video, 0, 1), length), 0, 1)
