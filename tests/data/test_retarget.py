"""Motion transfer on keypoints: known scales and places, and people who do not move in depth."""

import numpy as np
import pytest

from cvae_jax.data import pose
from cvae_jax.data.datasets.real_clips import read_keypoints, read_strip
from cvae_jax.data.retarget import LEAST_DEPTH, Stance, retarget, stance, standing_ankle


def walker(close=0.9, far=0.5, height=0.6, far_height=0.3, hip_x=0.5, steps=21):
    """Keypoints (T, 33, 2) of a stiff person who walks from the farthest to the nearest place."""
    d = np.linspace(0, 1, steps)
    ankle, tall = far + d * (close - far), far_height + d * (height - far_height)
    sway = np.linspace(-0.1, 0.1, steps)
    keypoints = np.full((steps, len(pose.LANDMARKS), 2), np.nan)
    for name, x, y in (
        ("nose", 0.0, 1.0),
        ("left_hip", 0.1, 0.5),
        ("right_hip", -0.1, 0.5),
        ("left_ankle", 0.1, 0.0),
        ("right_ankle", -0.1, 0.0),
        ("left_wrist", 0.3, 0.6),
    ):
        row = pose.landmark_index(name)
        keypoints[:, row, 0] = hip_x + sway + x * tall
        keypoints[:, row, 1] = ankle - y * tall
    return keypoints


def jumper():
    """One distance: stands at 0.8, and is 0.1 higher in frames 8 to 11 of 20."""
    keypoints = walker(0.8, 0.8, 0.4, 0.4, steps=20)
    keypoints[8:12, :, 1] -= 0.1
    return keypoints


def moved(source, target):
    return retarget(source, stance(source), stance(target))


@pytest.mark.parametrize("person", [walker(), jumper(), *read_keypoints().values()])
def test_onto_oneself_nothing_changes(person):
    np.testing.assert_allclose(moved(person, person), person, atol=1e-12)


def test_a_stance_is_what_was_drawn():
    measured = stance(walker(hip_x=0.4))
    assert measured.close == pytest.approx(0.9) and measured.far == pytest.approx(0.5)
    assert measured.close_height == pytest.approx(0.6)
    # the tallest in the farthest quarter of the way
    assert 0.3 <= measured.far_height <= 0.3 + 0.25 * 0.3 + 1e-9
    assert measured.hip_x == pytest.approx(0.4)


def test_a_person_twice_as_high_is_halved():
    small = walker(height=0.3, far_height=0.15)
    np.testing.assert_allclose(
        moved(walker(), small) - stance(small).hip_x,
        np.stack(
            [
                (walker()[..., 0] - 0.5) / 2,
                standing_ankle(walker())[:, None]
                + (walker()[..., 1] - standing_ankle(walker())[:, None]) / 2
                - 0.5,
            ],
            axis=-1,
        ),
        atol=1e-12,
    )


def test_the_result_stands_where_the_target_stands_and_is_as_high():
    target = walker(close=0.7, far=0.6, height=0.25, far_height=0.2, hip_x=0.3)
    result = moved(walker(), target)
    assert standing_ankle(result).min() == pytest.approx(0.6)
    assert standing_ankle(result).max() == pytest.approx(0.7)
    assert stance(result).close_height == pytest.approx(0.25)
    assert stance(result).hip_x == pytest.approx(0.3, abs=0.01)  # the steps are scaled unlike
    # between the ends place and scale run linearly
    middle = len(target) // 2
    assert standing_ankle(result)[middle] == pytest.approx(0.65)
    scale = [
        np.ptp(result[t, :, 1][~np.isnan(result[t, :, 1])]) / np.ptp(walker()[t, [0, 27], 1])
        for t in (0, middle, -1)
    ]
    assert scale[1] == pytest.approx((scale[0] + scale[2]) / 2)


@pytest.mark.parametrize("real", read_keypoints().values(), ids=read_keypoints().keys())
def test_real_people_stay_in_the_targets_range(real):
    target = walker(close=0.7, far=0.6, height=0.25, far_height=0.2)
    measured = stance(real)
    stands = standing_ankle(real) >= measured.far
    ankles = standing_ankle(moved(real, target))
    assert stands.mean() > 0.7
    assert ankles[stands].min() >= 0.6 - 1e-9 and ankles.max() <= 0.7 + 1e-9


def test_a_jump_is_no_distance_and_stays_a_jump():
    assert stance(jumper()).far == stance(jumper()).close == pytest.approx(0.8)
    target = walker(0.6, 0.6, 0.2, 0.2)
    ankles = standing_ankle(moved(jumper(), target))
    expected = np.full(20, 0.6)
    expected[8:12] -= 0.05  # at half the height the jump is half as high
    np.testing.assert_allclose(ankles, expected, atol=1e-12)


def test_one_distance_stands_in_the_middle_of_a_range():
    unsteady = walker(0.8, 0.8, 0.4, 0.4)
    unsteady[::2, :, 1] += LEAST_DEPTH / 2  # the tracker trembles
    result = moved(unsteady, walker())
    assert np.isfinite(result[:, 0]).all()
    assert abs(standing_ankle(result).mean() - 0.7) < LEAST_DEPTH
    still = moved(walker(), unsteady)  # and a range is mapped onto one place
    assert np.ptp(standing_ankle(still)) == 0


def test_joints_that_are_not_known_stay_so_and_needed_ones_are_asked_for():
    person = walker()
    person[3, pose.landmark_index("left_wrist")] = np.nan
    result = moved(person, walker(0.8, 0.6))
    np.testing.assert_array_equal(np.isnan(result), np.isnan(person))
    person[3, pose.landmark_index("left_ankle")] = np.nan
    with pytest.raises(ValueError, match="must be known in every frame"):
        stance(person)
    with pytest.raises(ValueError, match=r"must have shape \(T, 33, 2\)"):
        retarget(person[:, :17], *[Stance(0.9, 0.5, 0.6, 0.3, 0.5)] * 2)


def test_the_labels_of_the_real_clips_are_their_keypoints():
    for scene, keypoints in read_keypoints().items():
        labels = read_strip(f"{scene}_labels.png")
        for t in (0, len(keypoints) - 1):
            np.testing.assert_array_equal(pose.draw_pose(keypoints[t]), labels[t])
