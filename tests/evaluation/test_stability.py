"""Drift and flicker of videos whose drift and flicker are known."""

import numpy as np
import pytest

from cvae_jax.data.clips import Recording
from cvae_jax.evaluation.stability import WINDOW, Flicker, background, drift, flicker

SIZE = (20, 24)


def test_drift_is_the_last_frames_minus_the_first():
    falling = np.linspace(30, 20, 5 * WINDOW)
    rows = [
        {"name": "prior", "per_frame_psnr": falling.tolist()},
        {"name": "prior", "scene": "a", "per_frame_psnr": falling.tolist()},
        {"name": "still", "per_frame_psnr": [25.0] * (2 * WINDOW)},
        {"name": "short", "per_frame_psnr": [25.0] * (2 * WINDOW - 1)},
    ]
    expected = falling[-WINDOW:].mean() - falling[:WINDOW].mean()
    assert drift(rows) == {"prior": pytest.approx(expected), "still": 0.0}


@pytest.mark.parametrize("length", [3, 64, 65, 130])
def test_flicker_is_of_the_background_alone(length):
    rng = np.random.default_rng(0)
    labels = np.zeros((length, *SIZE, 3), np.uint8)
    labels[:, 5:10, 5:10] = 255
    frames = np.full((length, *SIZE, 3), 100, np.uint8)
    frames[:, 5:10, 5:10] = rng.integers(256, size=(length, 5, 5, 3))
    assert flicker(frames, background(labels)) == 0
    frames[1::2, 0, :, 1] += 51  # a row of 24 of the 480 - 49 pixels outside the dilated square
    assert flicker(frames, background(labels)) == pytest.approx(0.2**2 * 24 / (480 - 49) / 3, rel=1e-5)


def test_a_pixel_counts_where_nobody_is_in_both_frames():
    labels = np.zeros((2, *SIZE, 3), np.uint8)
    labels[0, :, :8] = labels[1, :, 16:] = 255
    frames = np.zeros((2, *SIZE, 3), np.uint8)
    frames[1, :, :9] = frames[1, :, 15:] = 255  # within the dilated person of either frame
    assert flicker(frames, background(labels)) == 0
    assert flicker(frames, background(np.full_like(labels, 255))) is None


def test_rows_are_averaged_over_clips_and_scenes():
    def clip(scene, step):
        frames = np.zeros((4, *SIZE, 3), np.uint8)
        frames[1::2] = step
        return Recording(scene, f"{scene}{step}", 0, frames, np.zeros_like(frames))

    clips = [clip("a", 0), clip("a", 51), clip("b", 102)]
    kept = Flicker(clips, n_past=1)
    for number, recording in enumerate(clips):
        kept.add("prior", number, np.zeros_like(recording.frames[1:]))
    assert kept.means == {"truth": pytest.approx(((0 + 0.04) / 2 + 0.16) / 2), "prior": 0.0}


def test_without_label_images_there_is_none():
    frames = np.zeros((4, *SIZE, 3), np.uint8)
    assert Flicker([Recording("a", "a", 0, frames, np.zeros((4, 2), np.float32))], 1).means == {}
