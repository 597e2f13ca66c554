"""Training batches as a pure function of (seed, epoch), and validation batches of whole clips."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from cvae_jax.data.clips import Recording, extend, span, windows
from cvae_jax.errors import UserError

SHUFFLE_STREAM = 0x5487


@dataclasses.dataclass(frozen=True)
class TrainLoader:
    """Clips of fixed length from recordings in memory, in an order given by (seed, epoch).

    A clip takes every `frame_step`-th frame; clips begin `stride` frames apart (None: where the one before
    ends, so that no two overlap).

    Nothing needs saving for a resume: `batches(epoch, start)` begins where an interrupted epoch stopped.
    A short last batch is filled up with copies of its first clip whose mask is 0.

    Raises UserError when no recording is long enough for one clip.
    """

    recordings: list[Recording]
    clip_length: int
    stride: int | None
    batch_size: int
    seed: int
    shuffle: bool
    frame_step: int = 1

    def __post_init__(self) -> None:
        if len(self.windows) == 0:
            longest = max((len(r.frames) for r in self.recordings), default=0)
            raise UserError(
                f"The longest training recording has {longest} frames, too few for one clip of "
                f"config.clip_length={self.clip_length}, config.data.frame_step={self.frame_step} frames "
                "apart; lower one of them or bring longer recordings."
            )

    @functools.cached_property
    def windows(self) -> np.ndarray:
        """All clips as (recording, first frame)."""
        lengths = [len(r.frames) for r in self.recordings]
        stride = self.stride or span(self.clip_length, self.frame_step)
        return windows(lengths, self.clip_length, stride, self.frame_step)

    @property
    def num_batches(self) -> int:
        """Batches per epoch, the short last one included."""
        return -(-len(self.windows) // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the epoch's batches from number `start` on.

        Each holds frames and labels uint8 (B, T, H, W, 3), mask float32 (B,) and index int32 (B,), the
        clip's place in the global batch.
        """
        clips = self.windows
        if self.shuffle:
            order = np.random.default_rng([self.seed, SHUFFLE_STREAM, epoch])
            clips = clips[order.permutation(len(clips))]
        for batch in range(start, self.num_batches):
            chosen = clips[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self._batch(chosen)

    def _batch(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        real = len(chosen)
        filled = np.concatenate([chosen, np.repeat(chosen[:1], self.batch_size - real, axis=0)])
        covered = span(self.clip_length, self.frame_step)
        cut = [(self.recordings[r], slice(s, s + covered, self.frame_step)) for r, s in filled]
        return {
            "frames": np.stack([r.frames[part] for r, part in cut]),
            "labels": np.stack([r.labels[part] for r, part in cut]),
            "mask": (np.arange(self.batch_size) < real).astype(np.float32),
            "index": np.arange(self.batch_size, dtype=np.int32),
        }


def pad_to_devices(batch: dict[str, np.ndarray], num_devices: int) -> dict[str, np.ndarray]:
    """Fill a batch up to a multiple of the device count with masked copies of its first clip."""
    size = len(batch["mask"])
    extra = -size % num_devices
    if extra == 0:
        return batch
    padded = {k: np.concatenate([v, np.repeat(v[:1], extra, axis=0)]) for k, v in batch.items()}
    padded["mask"][size:] = 0
    padded["index"][size:] = np.arange(size, size + extra)
    return padded


def validation_batches(
    recordings: list[Recording], batch_size: int, num_devices: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yield (clip ids, batch) over whole recordings, each padded to the longest by its last frame.

    All batches have one shape: frames and labels uint8 (B, T, H, W, 3), mask float32 (B,), index int32
    (B,) = clip id. Padding in time is left to the caller to drop: clip i has len(recordings[i].frames).
    """
    size = -(-min(batch_size, len(recordings)) // num_devices) * num_devices
    longest = max(len(r.frames) for r in recordings)

    for begin in range(0, len(recordings), size):
        ids = list(range(begin, min(begin + size, len(recordings))))
        filled = ids + ids[:1] * (size - len(ids))
        yield ids, {
            "frames": np.stack([extend(recordings[i].frames, longest) for i in filled]),
            "labels": np.stack([extend(recordings[i].labels, longest) for i in filled]),
            "mask": (np.arange(size) < len(ids)).astype(np.float32),
            "index": np.array(filled, dtype=np.int32),
        }
