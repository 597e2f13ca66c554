"""Predictions without a model: what any model must beat. Frames are uint8 (T, H, W, 3)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np

from cvae_jax.data.clips import Recording, extend, to_unit
from cvae_jax.data.dataset import Ceiling
from cvae_jax.evaluation.measures import Measures
from cvae_jax.evaluation.nearest import Blend, choose_blend, chunks, frames_at, nearest
from cvae_jax.evaluation.rows import ClipScores
from cvae_jax.runtime import processes
from cvae_jax.runtime.progress import clip_bar

_SCORED_AT_ONCE = 32  # frames of each baseline


class Baselines:
    """The baselines of a training set; a scene that the training set lacks uses all training frames.

    copy_first repeats the given frame, or the last one if there are several; copy_previous repeats the true
    previous frame (it sees the video it is scored on); mean_frame is the mean of the scene's training frames.
    Where labels are images there are three more. nearest_pose is the scene's training frame whose label is
    nearest in L2. blend_poses is a weighted mean of the nearest ones, see `choose_blend`.
    oracle_training_frame is the scene's training frame that is nearest to the target itself (which it sees).
    Besides the recordings, memory holds a few chunks of frames.
    """

    def __init__(self, train: list[Recording]):
        self._train = train
        self._means: dict[str, np.ndarray] = {}
        self._blends: dict[str, Blend] = {}

    def predict(self, recording: Recording, n_past: int = 1) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, prediction float32 in [0, 1] (T - n_past, H, W, 3)) for each baseline."""
        truth = to_unit(recording.frames)
        steps, scene = len(truth) - n_past, recording.scene
        yield "copy_first", np.repeat(truth[n_past - 1 : n_past], steps, axis=0)
        yield "copy_previous", truth[n_past - 1 : -1]
        same = [r for r in self._train if r.scene == scene] or self._train
        frames = [r.frames for r in same]
        if scene not in self._means:
            self._means[scene] = mean_frame(frames)
        yield "mean_frame", np.repeat(self._means[scene][None], steps, axis=0)
        if recording.image_labels:
            if scene not in self._blends:
                self._blends[scene] = choose_blend(same)
            blend = self._blends[scene]
            found = nearest(recording.labels[n_past:], [r.labels for r in same], blend.count)
            yield "nearest_pose", to_unit(frames_at(frames, found.number[:, 0]))
            yield "blend_poses", blend.predict(found, frames)
            closest = nearest(recording.frames[n_past:], frames)
            yield "oracle_training_frame", to_unit(frames_at(frames, closest.number[:, 0]))

    def share_what_was_chosen(self) -> None:
        """Take over what other processes of the job have chosen for the scenes of their clips."""
        for blends in processes.gather(self._blends):
            self._blends |= blends

    @property
    def definitions(self) -> dict[str, str]:
        """What the protocol says of the baselines that were chosen on the training set."""
        if not self._blends:
            return {}
        chosen = {scene: blend.definition for scene, blend in sorted(self._blends.items())}
        own = "; ".join(f"{scene}: {text}" for scene, text in chosen.items())
        return {
            "blend_poses": "mean of the k training frames with the nearest labels, weighted by distance; "
            f"k and width chosen on the training set ({own if len(chosen) > 1 else chosen.popitem()[1]})",
            "oracle_training_frame": "the training frame nearest to the target (sees the target)",
        }


def mean_frame(videos: list[np.ndarray]) -> np.ndarray:
    """Return the mean of all frames of videos uint8 (T, H, W, 3), float32 in [0, 1] (H, W, 3)."""
    total = np.zeros(videos[0].shape[1:])
    for video in videos:
        for part in chunks(video):
            total += part.sum(axis=0, dtype=np.float64)  # exact: integers below 2**53
    return (total / sum(map(len, videos))).astype(np.float32) / 255


def score_baselines(
    train: list[Recording],
    recordings: list[Recording],
    n_past: int,
    measures: Measures = Measures(ssim=True),
    ceiling: Ceiling | None = None,
) -> tuple[dict[str, list[ClipScores]], dict[str, str]]:
    """Return {row: a ClipScores per clip} of the baselines and the ceiling, and definitions of some rows."""
    baselines = Baselines(train)
    with clip_bar(-(-len(recordings) // processes.count())) as bar:
        bar.set_description("scoring the baselines")

        def score_clip(number: int) -> dict[str, ClipScores]:
            recording = recordings[number]
            predicted = dict(baselines.predict(recording, n_past))
            if ceiling is not None:
                predicted["ceiling"] = to_unit(ceiling.recordings[number].frames[n_past:])
            found = _measured(measures, np.stack(list(predicted.values())), recording, n_past)
            bar.update()
            return {
                name: ClipScores(recording.scene, {metric: rows[row] for metric, rows in found.items()})
                for row, name in enumerate(predicted)
            }

        clips = processes.shared_out(score_clip, range(len(recordings)))
    definitions = {} if ceiling is None else {"ceiling": ceiling.definition}
    baselines.share_what_was_chosen()
    scores = {name: [clip[name] for clip in clips] for name in clips[0]}
    return scores, definitions | baselines.definitions


def _measured(
    measures: Measures, predicted: np.ndarray, recording: Recording, n_past: int
) -> dict[str, np.ndarray]:
    """Return {metric: (rows, P)} of predictions float32 (rows, P, H, W, 3) of one recording."""
    program, weights = _program(measures)
    parts = []
    for begin in range(n_past, len(recording.frames), _SCORED_AT_ONCE):
        chunk = slice(begin, begin + _SCORED_AT_ONCE)
        frames = predicted[:, begin - n_past : begin - n_past + _SCORED_AT_ONCE]
        real = frames.shape[1]
        batch = {
            "videos": extend(recording.frames[chunk], _SCORED_AT_ONCE)[None],
            "labels": extend(recording.labels[chunk], _SCORED_AT_ONCE)[None],
            "frames": np.stack([extend(video, _SCORED_AT_ONCE) for video in frames]),
            "owner": np.zeros(len(frames), np.int32),
        }
        parts.append({name: np.asarray(v)[:, :real] for name, v in program(weights, batch).items()})
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


@functools.cache
def _program(measures: Measures) -> tuple:
    """Return the compiled program of the measures and its weights on the default device."""
    return jax.jit(measures.of), jax.device_put(measures.weights)
