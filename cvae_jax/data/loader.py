"""Training batches as a pure function of (seed, epoch)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import grain
import numpy as np

from cvae_jax.data.clips import Recording, span, windows
from cvae_jax.runtime.errors import UserError

SHUFFLE_STREAM, REFERENCE_STREAM = 0x5487, 0x4EF3
REFERENCES = ("first", "random")


@dataclasses.dataclass(frozen=True)
class TrainLoader:
    """Clips of fixed length from recordings in memory, in an order given by (seed, epoch).

    A clip takes every `frame_step`-th frame; clips begin `stride` frames apart (None: where the one before
    ends, so that no two overlap).

    Nothing needs saving for a resume: `batches(epoch, start)` begins where an interrupted epoch stopped.
    Batches are filled up with copies of their first clip whose mask is 0.

    repeats: an epoch goes through all clips so many times, each time in another order.
    clips_per_epoch: an epoch takes at most so many clips, each epoch others; None takes all.
    reference: 'first': a clip's context frames are its first `n_past` frames. 'random': they are taken from
      anywhere in the recordings of its scene, anew in each epoch, so that a model learns to show the person
      from any frame. They follow each other as in the clip.
    padded_size: what a batch is filled up to, at least `batch_size`; None: `batch_size`.
    share: which clips of the filled batch are made; None: all. Whichever they are, `index` and `mask` are
      those of the whole batch.
    read_threads: threads that make batches ahead of their use; the batches are the same for any number. 0
      makes each when it is asked for, which is fastest for recordings in memory (benchmarks/loader.py).

    Raises UserError when no recording is long enough for one clip, and for `clips_per_epoch` in fixed order.
    """

    recordings: list[Recording]
    clip_length: int
    stride: int | None
    batch_size: int
    seed: int
    shuffle: bool
    frame_step: int = 1
    repeats: int = 1
    clips_per_epoch: int | None = None
    read_threads: int = 0
    reference: str = "first"
    n_past: int = 1
    padded_size: int | None = None
    share: slice | None = None

    def __post_init__(self) -> None:
        if self.reference not in REFERENCES:
            raise UserError(
                f"config.data.reference is {self.reference!r}; choose one of {', '.join(REFERENCES)}."
            )
        if self.clips_per_epoch is not None and not self.shuffle:
            raise UserError(
                "config.data.clips_per_epoch needs config.data.shuffle=True: in a fixed order every epoch "
                "would take the same clips."
            )
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
    def too_short(self) -> list[str]:
        """Names of the recordings that no clip fits into."""
        used = set(self.windows[:, 0].tolist())
        return [r.name for index, r in enumerate(self.recordings) if index not in used]

    @property
    def num_clips(self) -> int:
        """Clips per epoch."""
        longest = self.repeats * len(self.windows)
        return min(longest, self.clips_per_epoch or longest)

    @property
    def num_batches(self) -> int:
        """Batches per epoch, the short last one included."""
        return -(-self.num_clips // self.batch_size)

    def clips_of(self, number: int) -> int:
        """Return how many real clips batch `number` of an epoch has."""
        return min(self.batch_size, self.num_clips - number * self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Return an iterator over the epoch's batches from number `start` on.

        Each holds frames uint8 (B, T, H, W, 3); labels, uint8 of that shape or float32 (B, T, A); mask
        float32 (B,); and index int32 (B,), the clip's place in the whole batch.
        """
        batches = grain.MapDataset.source(self.source(epoch))[start:]
        options = grain.ReadOptions(self.read_threads, prefetch_buffer_size=2 * self.read_threads)
        return iter(batches.to_iter_dataset(options))

    def source(self, epoch: int) -> EpochBatches:
        """Return the epoch's batches by number, each made when it is asked for."""
        order = [np.arange(len(self.windows))] * self.repeats
        if self.shuffle:
            rng = np.random.default_rng([self.seed, SHUFFLE_STREAM, epoch])
            order = [rng.permutation(once) for once in order]
        clips = self.windows[np.concatenate(order)[: self.num_clips]]
        references = None
        if self.reference == "random":
            references = self._references(clips, np.random.default_rng([self.seed, REFERENCE_STREAM, epoch]))
        return EpochBatches(self, clips, references)

    def _references(self, clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return where the context frames of clips are, int (n, 2), anywhere in the clips' scenes."""
        draws, chosen = rng.random(len(clips)), np.empty_like(clips)
        places = windows([len(r.frames) for r in self.recordings], self.n_past, 1, self.frame_step)
        scenes = np.array([r.scene for r in self.recordings])
        for scene in set(scenes.tolist()):
            known = places[scenes[places[:, 0]] == scene]
            own = scenes[clips[:, 0]] == scene
            chosen[own] = known[(draws[own] * len(known)).astype(int)]
        return chosen

    def batch(self, chosen: np.ndarray, references: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the batch of the chosen clips, (recording, first frame) each, or the share of it.

        references: where each clip's context frames are, if they are not its first frames.
        """
        index = np.arange(self.padded_size or self.batch_size, dtype=np.int32)[self.share or slice(None)]
        real = index < len(chosen)
        source = np.where(real, index, 0)
        videos = {field: self._cut(chosen[source], self.clip_length, field) for field in ("frames", "labels")}
        if references is not None:
            for field, video in videos.items():
                video[:, : self.n_past] = self._cut(references[source], self.n_past, field)
        return videos | {"mask": real.astype(np.float32), "index": index}

    def _cut(self, places: np.ndarray, length: int, field: str) -> np.ndarray:
        """Return the frames or labels of clips from (recording, first frame) on."""
        covered = span(length, self.frame_step)
        videos = (getattr(self.recordings[r], field) for r in places[:, 0])
        parts = (slice(first, first + covered, self.frame_step) for first in places[:, 1])
        return np.stack([video[part] for video, part in zip(videos, parts, strict=True)])


@dataclasses.dataclass(frozen=True)
class EpochBatches:
    """The batches of an epoch that takes `clips` in this order, by number: a source for grain.

    Whole batches, since grain's work is per element: clip by clip it takes longer than the copying.
    """

    loader: TrainLoader
    clips: np.ndarray
    references: np.ndarray | None = None

    def __len__(self) -> int:
        return self.loader.num_batches

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        own = slice(number * self.loader.batch_size, (number + 1) * self.loader.batch_size)
        return self.loader.batch(self.clips[own], None if self.references is None else self.references[own])
