"""The baselines walk over the training set: the same numbers as over all of it at once, in little memory."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from helpers import moving_square

from cvae_jax.data.clips import Recording, to_unit
from cvae_jax.evaluation import nearest as module
from cvae_jax.evaluation.baselines import Baselines
from cvae_jax.evaluation.nearest import Blend, choose_blend, nearest


def noise(name: str, length: int, seed: int) -> Recording:
    frames, labels = np.random.default_rng(seed).integers(256, size=(2, length, 16, 12, 3), dtype=np.uint8)
    return Recording("square", name, 0, frames, labels)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_they_are_those_of_the_whole_training_set(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    train = [noise("a", 9, 1), moving_square("b", 7, 2), noise("c", 2, 3)]
    clip = noise("d", 6, 4)
    frames, labels = (np.concatenate([getattr(r, kind) for r in train]) for kind in ("frames", "labels"))
    found = dict(Baselines(train).predict(clip, 2))
    mean = np.mean(frames, axis=0, dtype=np.float64).astype(np.float32) / 255
    np.testing.assert_array_equal(found["mean_frame"], np.repeat(mean[None], 4, axis=0))
    differences = labels[None].astype(np.int64) - clip.labels[2:, None]
    closest = (differences**2).sum(axis=(2, 3, 4)).argmin(axis=1)
    np.testing.assert_array_equal(nearest(clip.labels[2:], [labels]).number[:, 0], closest)
    pool = [r.labels for r in train]
    np.testing.assert_array_equal(nearest(clip.labels[2:], pool).number[:, 0], closest)
    order = (differences**2).sum(axis=(2, 3, 4)).argsort(axis=1, kind="stable")[:, :4]
    several = nearest(clip.labels[2:], pool, 4)
    np.testing.assert_array_equal(several.number, order)
    np.testing.assert_array_equal(
        several.distance, np.take_along_axis((differences**2).sum(axis=(2, 3, 4)), order, 1)
    )
    oracle = (frames[None].astype(np.int64) - clip.frames[2:, None]) ** 2
    of_target = frames[oracle.sum(axis=(2, 3, 4)).argmin(axis=1)]
    np.testing.assert_array_equal(found["oracle_training_frame"], to_unit(of_target))
    np.testing.assert_array_equal(found["nearest_pose"], to_unit(frames[closest]))


@pytest.mark.parametrize("chunk", [1, 2, 1024])
def test_the_first_of_equals_wins(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    same = noise("a", 1, 1).labels
    other = noise("b", 3, 2).labels
    pool = [other, np.repeat(same, 3, axis=0), same]
    assert nearest(same, pool).number.tolist() == [[3]]
    assert nearest(same, pool, 4).number[0].tolist() == [3, 4, 5, 6]
    # One brightness of 12 * 16 * 3 entries apart, where float32 no longer tells.
    bright = np.full_like(same, 255)
    close = bright.copy()
    close[0, 0, 0, 0] = 254
    assert nearest(bright, [close, bright, bright]).number.tolist() == [[1]]


def test_a_blend_weighs_the_nearest_by_their_distance() -> None:
    blend = Blend(count=2, width=0.5, scale=4.0)
    np.testing.assert_allclose(blend.weights(np.array([[1.0, 5.0]])), [[1, np.exp(-1)] / (1 + np.exp(-1))])
    clip, pool = noise("a", 3, 1), noise("b", 5, 2)
    found = nearest(clip.labels, [pool.labels], 3)
    for own, index, distance in zip(blend.predict(found, [pool.frames]), *found, strict=True):
        weights = np.exp((distance[0] - distance[:2]) / 4)
        expected = np.average(to_unit(pool.frames[index[:2]]), axis=0, weights=weights)
        np.testing.assert_allclose(own, expected, atol=1e-6)
    alike = Blend(1, 0.25, 1.0).predict(found, [pool.frames])
    np.testing.assert_allclose(alike, to_unit(pool.frames[found.number[:, 0]]))


def test_the_blend_is_chosen_on_training_frames_that_it_does_not_see() -> None:
    """Where frames are the label with noise, several neighbours are better than one: the noise averages."""
    rng = np.random.default_rng(0)
    level = rng.integers(60, 200, 240)
    labels = np.repeat(level, 16 * 12 * 3).reshape(240, 16, 12, 3).astype(np.uint8)
    noisy = labels + rng.normal(0, 20, labels.shape)
    clip = Recording("s", "a", 0, np.clip(noisy, 0, 255).astype(np.uint8), labels)
    assert choose_blend([clip]).count > 3
    # Where frames are a function of the label that varies fast, the nearest one alone is best.
    jumps = (37 * level.astype(int) % 256).astype(np.uint8)
    frames = np.repeat(jumps, 16 * 12 * 3).reshape(240, 16, 12, 3)
    sharp = choose_blend([dataclasses.replace(clip, frames=frames)])
    weights = sharp.weights(np.array([[0.0, *[16 * 12 * 3.0] * (sharp.count - 1)]]))[0]
    assert weights[0] > 0.8


def test_few_training_frames_are_enough_for_every_baseline() -> None:
    found = dict(Baselines([noise("a", 2, 1)]).predict(noise("b", 4, 2)))
    assert {video.shape for video in found.values()} == {(3, 16, 12, 3)}


def test_memory_does_not_grow_with_the_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 16)
    clip = noise("v", 5, 0)
    peaks = []
    for count in (4, 40):
        train = [dataclasses.replace(noise("r", 50, 1), name=str(number)) for number in range(count)]
        tracemalloc.start()
        dict(Baselines(train).predict(clip))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < sum(r.frames.nbytes for r in train)
