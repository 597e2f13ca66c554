"""The baselines walk over the training set: the same numbers as over all of it at once, in little memory."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from helpers import moving_square

from cvae_jax.data.clips import Recording, to_unit
from cvae_jax.evaluation import baselines
from cvae_jax.evaluation.baselines import Baselines, nearest


def noise(name: str, length: int, seed: int) -> Recording:
    frames, labels = np.random.default_rng(seed).integers(256, size=(2, length, 16, 12, 3), dtype=np.uint8)
    return Recording("square", name, 0, frames, labels)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_they_are_those_of_the_whole_training_set(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(baselines, "_CHUNK", chunk)
    train = [noise("a", 9, 1), moving_square("b", 7, 2), noise("c", 2, 3)]
    clip = noise("d", 6, 4)
    frames, labels = (np.concatenate([getattr(r, kind) for r in train]) for kind in ("frames", "labels"))
    found = dict(Baselines(train).predict(clip, 2))
    mean = np.mean(frames, axis=0, dtype=np.float64).astype(np.float32) / 255
    np.testing.assert_array_equal(found["mean_frame"], np.repeat(mean[None], 4, axis=0))
    differences = labels[None].astype(np.int64) - clip.labels[2:, None]
    closest = (differences**2).sum(axis=(2, 3, 4)).argmin(axis=1)
    np.testing.assert_array_equal(nearest(clip.labels[2:], labels), closest)
    np.testing.assert_array_equal(nearest(clip.labels[2:], *(r.labels for r in train)), closest)
    np.testing.assert_array_equal(found["nearest_pose"], to_unit(frames[closest]))


@pytest.mark.parametrize("chunk", [1, 2, 1024])
def test_the_first_of_equals_wins(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(baselines, "_CHUNK", chunk)
    same = noise("a", 1, 1).labels
    other = noise("b", 3, 2).labels
    assert nearest(same, other, np.repeat(same, 3, axis=0), same).tolist() == [3]
    # One brightness of 12 * 16 * 3 entries apart, where float32 no longer tells.
    bright = np.full_like(same, 255)
    close = bright.copy()
    close[0, 0, 0, 0] = 254
    assert nearest(bright, close, bright, bright).tolist() == [1]


def test_memory_does_not_grow_with_the_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_CHUNK", 16)
    clip = noise("v", 5, 0)
    peaks = []
    for count in (2, 40):
        train = [dataclasses.replace(noise("r", 50, 1), name=str(number)) for number in range(count)]
        tracemalloc.start()
        dict(Baselines(train).predict(clip))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < sum(r.frames.nbytes for r in train)
