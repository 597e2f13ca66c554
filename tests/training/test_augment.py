"""Random changes of clips: what they do to pixels and labels, and what they are a function of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cvae_jax.data.pose import LANDMARKS, LIMBS, draw_pose, landmark_index
from cvae_jax.rollout.noise import derive_keys
from cvae_jax.rollout.scan import Clips
from cvae_jax.runtime.errors import UserError
from cvae_jax.training.augment import Augmentation, mirrored_colors

CLIPS, FRAMES, SIZE = 64, 3, (12, 10)


def keys(count=CLIPS, step=0):
    return derive_keys(jnp.uint32(1), jnp.uint32(step), jnp.arange(count))


def clips(vectors=False):
    rng = np.random.default_rng(0)
    video = jnp.asarray(rng.integers(256, size=(CLIPS, FRAMES, *SIZE, 3)), jnp.uint8)
    labels = jnp.asarray(rng.normal(size=(CLIPS, FRAMES, 4)), jnp.float32) if vectors else video
    return Clips(video, labels, jnp.ones(CLIPS))


def changed(augmentation, made, **kwargs):
    return jax.jit(augmentation.apply)(made, keys(**kwargs))


def test_without_any_change_clips_are_returned_as_they_are():
    made = clips()
    assert Augmentation().apply(made, keys()) is made


def test_a_shift_is_by_whole_pixels_and_repeats_the_edges():
    made = clips()
    moved = changed(Augmentation(shift=2), made)
    found = set()
    for clip in range(CLIPS):
        true = np.asarray(made.frames[clip], np.float32) / 255
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                rows = np.clip(np.arange(SIZE[0]) + dy, 0, SIZE[0] - 1)
                columns = np.clip(np.arange(SIZE[1]) + dx, 0, SIZE[1] - 1)
                if np.allclose(moved.frames[clip], true[:, rows][:, :, columns], atol=1e-6):
                    found.add((clip, dy, dx))
    assert len(found) == CLIPS  # each clip has one shift, the same for all its frames
    assert {dy for _, dy, _ in found} == {dx for _, _, dx in found} == set(range(-2, 3))
    np.testing.assert_array_equal(moved.frames, moved.labels)  # labels move with their frames


def test_half_of_the_clips_are_mirrored():
    made = clips()
    moved = changed(Augmentation(mirror=True), made)
    true = np.asarray(made.frames, np.float32) / 255
    kept = [np.allclose(a, b, atol=1e-6) for a, b in zip(moved.frames, true, strict=True)]
    turned = [np.allclose(a, b[:, :, ::-1], atol=1e-6) for a, b in zip(moved.frames, true, strict=True)]
    assert all(a != b for a, b in zip(kept, turned, strict=True))
    assert 0.25 < np.mean(turned) < 0.75
    exchanged = mirrored_colors(jnp.asarray(true[:, :, :, ::-1]))
    for clip, flip in enumerate(turned):
        np.testing.assert_allclose(moved.labels[clip], exchanged[clip] if flip else true[clip], atol=1e-5)


def test_zoom_is_about_the_centre_and_agrees_with_pillow():
    """A smooth image magnified: Pillow's affine transform with bilinear interpolation is the reference."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    smooth = (100 + 60 * np.sin(x / 3) * np.cos(y / 4)).astype(np.float32)
    video = jnp.broadcast_to(smooth[None, None, :, :, None] / 255, (CLIPS, 1, *SIZE, 3))
    moved = changed(Augmentation(zoom=0.3), Clips(video, video, jnp.ones(CLIPS)))
    middle = [(side - 1) / 2 for side in SIZE]
    inner = (slice(3, -3), slice(3, -3))
    errors = []
    for clip in range(CLIPS):
        candidates = []
        for zoom in np.linspace(0.7, 1.3, 61):
            # Pillow's coordinates lie at the corners of pixels, ours at their centres.
            x0, y0 = (m + 0.5 - (m + 0.5) / zoom for m in (middle[1], middle[0]))
            expected = Image.fromarray(smooth).transform(
                SIZE[::-1],
                Image.Transform.AFFINE,
                (1 / zoom, 0, x0, 0, 1 / zoom, y0),
                Image.Resampling.BILINEAR,
            )
            difference = np.asarray(expected)[inner] - 255 * np.asarray(moved.frames[clip, 0, ..., 0])[inner]
            candidates.append((np.abs(difference).max(), zoom))
        errors.append(min(candidates))
    assert max(error for error, _ in errors) < 1.0  # of 255, between the zooms that were tried
    zooms = [zoom for _, zoom in errors]
    assert min(zooms) < 0.8 and max(zooms) > 1.2


def test_brightness_changes_frames_by_a_factor_and_labels_not_at_all():
    made = clips()
    moved = changed(Augmentation(brightness=0.2), made)
    np.testing.assert_array_equal(moved.labels, made.labels)
    true = np.asarray(made.frames, np.float32) / 255
    inner = (true > 0.1) & (true < 0.8)
    factors = []
    for own, clip, kept in zip(np.asarray(moved.frames), true, inner, strict=True):
        factors.append(np.median(own[kept] / clip[kept]))
        np.testing.assert_allclose(own[kept], factors[-1] * clip[kept], rtol=1e-4)
    assert 0.8 <= min(factors) < 0.85 and 1.15 < max(factors) <= 1.2
    assert float(moved.frames.max()) <= 1.0


def test_labels_that_are_vectors_stay():
    made = clips(vectors=True)
    moved = changed(Augmentation(shift=2, mirror=True, brightness=0.1), made)
    np.testing.assert_array_equal(moved.labels, made.labels)


def test_a_draw_belongs_to_the_clip_and_the_step():
    """The same for any split over devices; another step is another draw."""
    made = clips()
    augmentation = Augmentation(shift=3, zoom=0.1, mirror=True, brightness=0.1)
    whole = changed(augmentation, made)
    part = Clips(made.frames[40:], made.labels[40:], made.mask[40:])
    alone = jax.jit(augmentation.apply)(part, keys()[40:])
    np.testing.assert_allclose(alone.frames, whole.frames[40:], atol=1e-6)
    assert not np.allclose(changed(augmentation, made, step=1).frames, whole.frames)


def test_mirrored_colours_are_the_label_of_the_mirrored_body():
    rng = np.random.default_rng(3)
    keypoints = rng.uniform(0.15, 0.85, (len(LANDMARKS), 2))
    mirrored = keypoints.copy()
    for name in LANDMARKS:
        other = name.replace("left", "L").replace("right", "left").replace("L", "right")
        mirrored[landmark_index(name)] = keypoints[landmark_index(other)] * [-1, 1] + [1, 0]
    label, expected = (draw_pose(points, frame_size=(64, 64)) / 255 for points in (keypoints, mirrored))
    found = np.asarray(mirrored_colors(jnp.asarray(label[:, ::-1], jnp.float32)))
    wrong = np.abs(found - expected).max(axis=-1) > 0.1
    before = np.abs(label[:, ::-1] - expected).max(axis=-1) > 0.1
    # Where limbs cross, the one drawn later differs between the two.
    assert wrong.mean() < 0.25 * before.mean()
    for limb in LIMBS:
        color = jnp.asarray(limb.color, jnp.float32)[None, None] / 255
        other = mirrored_colors(color)
        partner = limb.name.replace("left", "L").replace("right", "left").replace("L", "right")
        wanted = next(one.color for one in LIMBS if one.name == partner)
        np.testing.assert_allclose(255 * other[0, 0], wanted, atol=0.01)
        np.testing.assert_allclose(mirrored_colors(0.5 * color)[0, 0], 0.5 * other[0, 0], atol=1e-5)
    for color in (0.0, 1.0):
        np.testing.assert_allclose(mirrored_colors(jnp.full((1, 1, 3), color)), color, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"shift": -1}, "config.augment.shift is -1; give a number of pixels"),
        ({"zoom": 1.0}, "config.augment.zoom is 1.0; give a number in"),
        ({"brightness": -0.1}, "config.augment.brightness is -0.1; give a number in"),
    ],
)
def test_values_out_of_range(fields, sentence):
    with pytest.raises(UserError) as error:
        Augmentation(**fields)
    assert sentence in str(error.value)
