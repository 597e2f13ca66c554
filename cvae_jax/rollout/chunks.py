"""Long videos rolled out in chunks, in memory that does not grow with their length.

The one driver that validation, evaluation and generation share. A rollout is a sequence of calls of one
compiled program, each over at most `chunk` frames. The model's constants and carry stay on the devices
between the calls; what is kept of the steps leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from cvae_jax.data.clips import extend
from cvae_jax.models.interface import StepOutputs, VideoModel, standard_normal
from cvae_jax.rollout import scan
from cvae_jax.rollout.noise import EVALUATION_STREAM, Noise, clip_noise, correlated, derive_keys
from cvae_jax.rollout.prompts import TRUTH, Prompt, parts, true_frames, truth
from cvae_jax.rollout.scan import Clips, RolloutState, as_float
from cvae_jax.runtime.devices import Devices

PRIOR, POSTERIOR = MODES = ("prior", "posterior")

Keep = Callable[[StepOutputs, Array | None], tuple[dict[str, Array], dict[str, Array]]]
"""(outputs, target or None) -> (values of each frame, values to sum over a clip's frames), all (b, ...)."""

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
        self._devices, self._n_past = devices, n_past
        self._batch_size, self._chunk = batch_size, chunk
        self._needs_targets, self._measure = mode == POSTERIOR, measure
        self._begin = devices.map_clips(_make_begin(model))
        advance = _make_advance(model, mode, n_past, keep, measure is not None, noise_correlation)
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
        variables = devices.place(variables)
        controls = {"seed": np.uint32(seed), "temperature": np.float32(temperature)}
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
        if self._needs_targets:
            batch["frames"] = np.stack([extend(true_frames(prompt), longest) for prompt in own])
        return batch

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
        constant = split({name: batch[name] for name in ("mask", "index", "sample", "length")})
        first = {"given": batch["given"], "labels": batch["labels"][:, : self._n_past]}
        started = self._begin(variables, constant | split(first), controls)
        state, constants = started["state"], started["constants"]
        noise = started["noise"]
        last = batch["labels"].shape[1] - 1
        found: list[dict[str, np.ndarray]] = []
        sums: dict[str, np.ndarray] = {}
        for start in range(self._n_past - 1, last, chunk):
            window = slice(start, start + chunk + 1)
            videos = {name: batch[name][:, window] for name in ("frames", "labels") if name in batch}
            filled = split({name: _filled(video, chunk + 1) for name, video in videos.items()})
            inputs = constant | filled | {"constants": constants, "state": state, "noise": noise}
            out = self._advance(variables, inputs, controls | {"start": np.int32(start)})
            state, noise = out["state"], out["noise"]
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


def _filled(video: np.ndarray, length: int) -> np.ndarray:
    return np.swapaxes(extend(np.swapaxes(video, 0, 1), length), 0, 1)


def _noise(model: VideoModel, batch: dict, controls: dict, frame_size: tuple[int, int]) -> Noise:
    keys = derive_keys(controls["seed"], EVALUATION_STREAM, batch["index"], batch["sample"])
    return clip_noise(keys, model.latent_shape(frame_size))


def _make_begin(model: VideoModel) -> Callable:
    """Return the device function (variables, batch, controls) -> what a rollout starts from.

    That is the model's constants, the state after the context, and noise for `correlated`.

    batch: given uint8 (b, n_past, H, W, 3) and their labels; mask, index, sample (b,). controls: seed.
    """

    def begin(variables: PyTree, batch: dict, controls: dict) -> dict:
        given, labels = as_float(batch["given"]), as_float(batch["labels"])
        constants, carry = model.begin(variables, given, labels, train=False)
        noise = _noise(model, batch, controls, batch["given"].shape[2:4])
        if given.shape[1] > 1:

            def advance(x, carry, batch_stats, total):
                outputs, carry, _ = scan.observe_step(model, variables, constants, carry, x, train=False)
                return outputs, carry, batch_stats, total, None

            steps = given.shape[1] - 1
            state, *_ = scan.scan_steps(
                advance,
                Clips(given, labels, batch["mask"]),
                noise,
                jnp.ones(steps, bool),
                RolloutState(given[:, 0], carry),
                variables["batch_stats"],
                n_past=given.shape[1],
            )
            carry = state.carry
        # Steps count from 1, so that nothing else depends on the noise of 0.
        state = RolloutState(given[:, -1], carry)
        return {"constants": constants, "state": state, "noise": noise(jnp.int32(0))}

    return begin


def _make_advance(
    model: VideoModel, mode: str, n_past: int, keep: Keep, with_frames: bool, noise_correlation: float
) -> Callable:
    """Return the device function (variables, batch, controls) -> outputs and state of one chunk.

    batch: constants, state and noise; labels (b, 1 + n, ...) and, where there are any, frames uint8 (b, 1 +
    n, H, W, 3): those of the frame before the chunk, then of its steps; mask, index, sample, length (b,).
    controls: seed, temperature, and start, the number of the frame before the chunk. outputs: the frames as
    uint8 pixels, and with_frames as they are.
    """

    def advance_chunk(variables: PyTree, batch: dict, controls: dict) -> dict:
        constants, state, start = batch["constants"], batch["state"], controls["start"]
        noise = _noise(model, batch, controls, state.frame.shape[1:3])
        last = batch["noise"]
        if mode == PRIOR:
            steps = batch["labels"].shape[1] - 1
            unit, last = correlated(noise, noise_correlation, start, steps, last)
            noise = lambda t: controls["temperature"] * unit(t)  # noqa: E731

        def advance(x, carry, batch_stats, total):
            if mode == PRIOR:
                outputs, carry = scan.imagine_step(model, variables, constants, carry, x)
            else:
                outputs, carry, _ = scan.observe_step(model, variables, constants, carry, x, train=False)
            values, summed = keep(outputs, x.target)
            known = x.t < batch["length"]
            add = lambda sums, new: sums + jnp.where(_spread(known, new), new, 0.0)  # noqa: E731
            return outputs, carry, batch_stats, jax.tree.map(add, total, summed), (outputs.frame, values)

        clips = Clips(batch.get("frames"), batch["labels"], batch["mask"])
        zeros = _zero_sums(model, mode, keep, state)
        stats = variables["batch_stats"]
        state, _, sums, (frames, values) = scan.scan_steps(
            advance, clips, noise, None, state, stats, zeros, start=start, n_past=n_past
        )
        frames, values = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (frames, values))
        pixels = jnp.round(255.0 * frames).astype(jnp.uint8)
        out = {"state": state, "noise": last, "pixels": pixels, "values": values, "sums": sums}
        return out | {"frames": frames} if with_frames else out

    return advance_chunk


def _spread(flags: Array, like: Array) -> Array:
    """Return (b,) flags with as many axes as `like` (b, ...)."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _zero_sums(model: VideoModel, mode: str, keep: Keep, state: RolloutState) -> dict:
    """Return zeros shaped like what `keep` sums."""

    def summed(frame: Array) -> dict[str, Array]:
        clips, height, width, _ = frame.shape
        zeros = jnp.zeros((clips, *model.latent_shape((height, width))))
        normal = standard_normal(zeros)
        outputs = StepOutputs(frame, normal, None if mode == PRIOR else normal)
        return keep(outputs, None if mode == PRIOR else frame)[1]

    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(summed, state.frame))
