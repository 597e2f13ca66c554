"""Metrics against known values and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cvae_jax.metrics import dilation_radius, person_mask, psnr_from_mse, psnr_per_frame, ssim_per_frame


def random_pair(height, width, frames=2, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    target = generator.random((frames, height, width, channels), np.float32)
    noise = generator.normal(0, 0.1, target.shape).astype(np.float32)
    return np.clip(target + noise, 0, 1), target


def structured_pair(height, width):
    """A bright flat ground, a hard edge and a gradient; the prediction is moved by a pixel."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    frame = np.ones((height, width, 3), np.float32)
    frame[..., 1] = columns / width
    frame[height // 3 : height // 2, width // 4 : width // 2] = [0.0, 0.2, 0.7]
    frame[..., 2] *= 0.5 + 0.5 * np.sin(rows / 3)
    return np.roll(frame, 1, axis=1)[None], frame[None]


def reference_ssim(prediction, target):
    return [
        structural_similarity(
            one.astype(np.float64),
            other.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        for one, other in zip(prediction, target, strict=True)
    ]


def test_psnr_of_known_errors():
    target = jnp.full((3, 8, 6, 3), 0.5)
    offsets = jnp.array([0.0, 0.1, 0.5])[:, None, None, None]
    np.testing.assert_allclose(
        psnr_per_frame(target + offsets, target), [100.0, 20.0, 20 * np.log10(2)], rtol=1e-5
    )
    black, white = jnp.zeros((1, 4, 4, 3)), jnp.ones((1, 4, 4, 3))
    assert float(psnr_per_frame(black, white)[0]) == 0.0


def test_psnr_is_at_most_100_db():
    np.testing.assert_allclose(
        psnr_from_mse(jnp.array([0.0, 1e-12, 1e-10, 1e-2, 1.0])), [100, 100, 100, 20, 0], atol=1e-4
    )


def test_psnr_is_per_frame_and_keeps_leading_axes():
    prediction, target = random_pair(16, 12, frames=6)
    expected = [peak_signal_noise_ratio(t, p, data_range=1) for p, t in zip(prediction, target, strict=True)]
    shape = (2, 3, 16, 12, 3)
    values = psnr_per_frame(jnp.asarray(prediction).reshape(shape), target.reshape(shape))
    assert values.shape == (2, 3)
    np.testing.assert_allclose(values.ravel(), expected, rtol=1e-5)


def test_integer_video_is_refused_because_it_would_wrap():
    """250 against 4 differs by 246 of 255; in uint8 it differs by 10, or seems to."""
    prediction, target = (np.full((1, 16, 16, 3), level, np.uint8) for level in (4, 250))
    wrapped = np.mean(((prediction - target) / 255.0) ** 2)
    assert -10 * np.log10(wrapped) > 28
    for metric in (psnr_per_frame, ssim_per_frame):
        with pytest.raises(TypeError, match="prediction holds uint8, whose differences wrap"):
            metric(prediction, target)
        with pytest.raises(TypeError, match="target holds int32"):
            metric(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 3), jnp.int32))
    honest = psnr_per_frame(prediction.astype(np.float32) / 255, target.astype(np.float32) / 255)
    assert float(honest[0]) == pytest.approx(-20 * np.log10(246 / 255), abs=1e-4)


def test_shapes_that_differ_are_refused():
    for metric in (psnr_per_frame, ssim_per_frame):
        with pytest.raises(ValueError, match=r"\(2, 16, 16, 3\) and target \(1, 16, 16, 3\)"):
            metric(jnp.zeros((2, 16, 16, 3)), jnp.zeros((1, 16, 16, 3)))


def test_half_precision_is_computed_in_float32():
    prediction, target = (jnp.asarray(x, jnp.bfloat16) for x in random_pair(16, 16))
    for metric in (psnr_per_frame, ssim_per_frame):
        values = metric(prediction, target)
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(
            values, metric(prediction.astype(jnp.float32), target.astype(jnp.float32))
        )


@pytest.mark.parametrize("size", [(11, 11), (11, 30), (13, 17), (32, 64), (64, 32), (41, 12)])
def test_ssim_equals_scikit_image(size):
    for prediction, target in (random_pair(*size), structured_pair(*size)):
        values = jax.jit(ssim_per_frame)(prediction, target)
        np.testing.assert_allclose(values, reference_ssim(prediction, target), atol=1e-5)


def test_ssim_of_one_channel_and_of_small_contrast_equals_scikit_image():
    low_contrast = (0.9 + 0.01 * x for x in random_pair(20, 20))
    for prediction, target in (random_pair(20, 20, channels=1), low_contrast):
        values = jax.jit(ssim_per_frame)(prediction, target)
        np.testing.assert_allclose(values, reference_ssim(prediction, target), atol=1e-5)


def test_ssim_of_known_pairs():
    _, target = random_pair(16, 16)
    np.testing.assert_allclose(ssim_per_frame(target, target), 1.0, atol=1e-6)
    flat = jnp.full((1, 16, 16, 3), 0.5)
    only_luminance = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    np.testing.assert_allclose(ssim_per_frame(flat, flat + 0.1), only_luminance, rtol=1e-5)
    assert float(ssim_per_frame(1 - target, target)[0]) < 0  # negatives are anticorrelated


def test_ssim_refuses_frames_smaller_than_its_window():
    for shape in ((1, 10, 30, 3), (1, 30, 10, 3)):
        with pytest.raises(ValueError, match="at least 11 x 11 pixels"):
            ssim_per_frame(jnp.zeros(shape), jnp.zeros(shape))


@pytest.mark.parametrize("metric", [psnr_per_frame, ssim_per_frame])
def test_metrics_under_jit_and_vmap(metric):
    prediction, target = (jnp.asarray(x).reshape(2, 3, 12, 14, 3) for x in random_pair(12, 14, 6))
    plain = metric(prediction, target)
    assert plain.shape == (2, 3)
    np.testing.assert_allclose(jax.jit(metric)(prediction, target), plain, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(metric)(prediction, target), plain, rtol=1e-5)


def test_a_masked_psnr_is_that_of_the_chosen_pixels():
    prediction, target = random_pair(16, 20, frames=3)
    mask = np.random.default_rng(1).random((3, 16, 20)) < 0.2
    expected = [
        peak_signal_noise_ratio(t[m], p[m], data_range=1)
        for p, t, m in zip(prediction, target, mask, strict=True)
    ]
    np.testing.assert_allclose(psnr_per_frame(prediction, target, mask), expected, rtol=1e-5)
    everything = np.full((3, 16, 20), True)
    np.testing.assert_allclose(
        psnr_per_frame(prediction, target, everything), psnr_per_frame(prediction, target), rtol=1e-5
    )


def test_a_masked_ssim_is_the_mean_of_scikit_images_map():
    prediction, target = random_pair(24, 30, frames=2)
    mask = np.random.default_rng(1).random((2, 24, 30)) < 0.2
    expected = []
    for one, other, chosen in zip(prediction, target, mask, strict=True):
        _, similarity = structural_similarity(
            one.astype(np.float64),
            other.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
            full=True,
        )
        inside = chosen[5:-5, 5:-5]
        expected.append(similarity[5:-5, 5:-5][inside].mean())
    np.testing.assert_allclose(ssim_per_frame(prediction, target, mask), expected, atol=1e-5)
    whole = np.full((2, 24, 30), True)
    np.testing.assert_allclose(
        ssim_per_frame(prediction, target, whole), ssim_per_frame(prediction, target), rtol=1e-5
    )


@pytest.mark.parametrize("metric", [psnr_per_frame, ssim_per_frame])
def test_a_frame_without_the_mask_is_nan_and_a_broken_one_is_not_left_out(metric):
    prediction, target = (np.repeat(x, 3, axis=0) for x in random_pair(16, 16, frames=1))
    mask = np.zeros((3, 16, 16), bool)
    mask[0, 7, 7] = mask[2, 8, 8] = True
    prediction = prediction.copy()
    prediction[2] = np.nan
    values = np.asarray(metric(prediction, target, mask))
    assert np.isfinite(values[0]) and np.isnan(values[1]) and values[2] == -np.inf


def test_the_person_is_what_is_drawn_and_a_border_around_it():
    label = np.zeros((1, 64, 48, 3), np.float32)
    label[0, 20, 30, 1] = 0.5  # one channel is enough
    label[0, 50, 10] = 0.05  # too dark to be drawn
    expected = np.zeros((1, 64, 48), bool)
    assert dilation_radius(64, 48) == 2 and dilation_radius(64, 32) == 1 and dilation_radius(12, 11) == 1
    expected[0, 18:23, 28:33] = True
    np.testing.assert_array_equal(jax.jit(person_mask)(label), expected)
    label[0, 0, 47] = 1.0  # at the corner
    expected[0, :3, 45:] = True
    np.testing.assert_array_equal(person_mask(jnp.asarray(label)), expected)
