"""Averages over frames, clips and scenes, and their bootstrap intervals."""

import numpy as np
import pytest

from cvae_jax.evaluation.averages import (
    clip_means,
    curve_over_scenes,
    interval_over_clips,
    mean_over_scenes,
)


def test_means_are_over_frames_then_clips_then_scenes():
    per_frame = [np.array([1.0, 3.0]), np.array([4.0]), np.array([10.0, 10.0, 10.0])]
    assert clip_means(per_frame) == [2.0, 4.0, 10.0]
    scenes = ["a", "a", "b"]
    assert mean_over_scenes(clip_means(per_frame), scenes) == (3.0 + 10.0) / 2
    # At the second frame scene a has one clip, at the third only scene b is left.
    assert curve_over_scenes(per_frame, scenes) == [(2.5 + 10) / 2, (3 + 10) / 2, 10.0]


def test_the_interval_of_one_scene_is_near_the_textbook_one():
    values = np.random.default_rng(0).normal(30.0, 2.0, 400)
    scenes = ["a"] * 400
    low, high = interval_over_clips(values, scenes, seed=1)
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    narrow_low, narrow_high = interval_over_clips(values, scenes, seed=1, level=0.5)
    assert low < narrow_low < values.mean() < narrow_high < high


def test_clips_are_resampled_within_their_scenes():
    """Scenes far apart: drawing scenes as well would give an interval as wide as their distance."""
    noise = np.random.default_rng(0).normal(0.0, 1.0, 200)
    values, scenes = np.concatenate([noise[:100], 50 + noise[100:]]), ["a"] * 100 + ["b"] * 100
    low, high = interval_over_clips(values, scenes, seed=0)
    expected = 1.96 * np.sqrt(noise[:100].var() / 100 + noise[100:].var() / 100) / 2
    assert (high - low) / 2 == pytest.approx(expected, rel=0.05)
    assert (low + high) / 2 == pytest.approx(mean_over_scenes(values, scenes), abs=0.02)


def test_a_scene_of_one_clip_is_held_fixed():
    low, high = interval_over_clips([1.0, 2.0, 9.0], ["a", "a", "b"], seed=0)
    assert (low, high) == ((1 + 9) / 2, (2 + 9) / 2)
    assert interval_over_clips([7.0], ["a"], seed=0) is None
    assert interval_over_clips([7.0, 8.0], ["a", "b"], seed=0) is None
    assert interval_over_clips([7.0, 7.0], ["a", "a"], seed=0) == (7.0, 7.0)


def test_the_interval_is_a_function_of_its_seed():
    values, scenes = [20.0, 25.0, 31.0, 28.5, 22.0], ["a"] * 5
    assert interval_over_clips(values, scenes, 3) == interval_over_clips(values, scenes, 3)
    few = [interval_over_clips(values, scenes, seed, resamples=50) for seed in (3, 4)]
    assert few[0] != few[1]


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_an_interval_needs_finite_numbers(values):
    with pytest.raises(ValueError, match="one per clip"):
        interval_over_clips(values, ["a"] * len(values), seed=0)
