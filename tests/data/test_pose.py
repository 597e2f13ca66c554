"""Drawing of pose labels."""

import numpy as np
import pytest

from cvae_jax.data import pose

COLORS = {limb.name: limb.color for limb in pose.LIMBS}


def body(**joints: tuple[float, float]) -> np.ndarray:
    """Keypoints with only these joints."""
    keypoints = np.full((len(pose.LANDMARKS), 2), np.nan)
    for name, point in joints.items():
        keypoints[pose.landmark_index(name)] = point
    return keypoints


def test_landmarks() -> None:
    assert len(pose.LANDMARKS) == len(set(pose.LANDMARKS)) == 33
    assert pose.landmark_index("left_shoulder") == 11
    assert pose.landmark_index("right_foot_index") == 32
    assert len(set(COLORS.values())) == len(pose.LIMBS)
    with pytest.raises(ValueError):
        pose.landmark_index("tail")


@pytest.mark.parametrize("frame_size", [(64, 32), (32, 64), (17, 40)])
def test_size(frame_size: tuple[int, int]) -> None:
    label = pose.draw_pose(np.full((33, 2), 0.5), frame_size=frame_size)
    assert label.shape == (*frame_size, 3) and label.dtype == np.uint8


def test_no_joints_is_black() -> None:
    assert not pose.draw_pose(body()).any()


def test_left_and_right_have_their_own_colors() -> None:
    for part, joints in (("arm", ("shoulder", "elbow")), ("leg", ("hip", "knee"))):
        for side in ("left", "right"):
            start, end = (f"{side}_{joint}" for joint in joints)
            label = pose.draw_pose(body(**{start: (0.5, 0.2), end: (0.5, 0.8)}))
            assert tuple(label[32, 16]) == COLORS[f"{side}_{part}"]


def test_a_limb_lies_on_its_line() -> None:
    start, end = np.array([0.2, 0.3]), np.array([0.8, 0.7])
    label = pose.draw_pose(body(left_elbow=tuple(start), left_wrist=tuple(end)), frame_size=(64, 64))
    y, x = np.nonzero(label.any(axis=-1))
    points = np.stack([x + 0.5, y + 0.5], axis=1) / 64
    along = np.clip((points - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
    distance = np.linalg.norm(points - start - along[:, None] * (end - start), axis=1)
    # Half the line's width, and half a pixel's diagonal.
    assert distance.max() <= 1 / 32 + 0.75 / 64
    for share in np.linspace(0, 1, 20):
        column, row = np.floor((start + share * (end - start)) * 64).astype(int)
        assert tuple(label[row, column]) == COLORS["left_arm"]


def test_the_drawing_is_centered() -> None:
    label = pose.draw_pose(body(nose=(0.5, 0.5)), frame_size=(64, 32))
    # Pillow's discs and lines may be off by one pixel of the large drawing.
    assert np.abs(label.astype(int) - label[::-1, ::-1].astype(int)).max() <= 32
    assert tuple(label[32, 16]) == pose.HEAD_COLOR


def test_missing_and_invisible_joints_are_skipped() -> None:
    arm = body(left_shoulder=(0.2, 0.5), left_elbow=(0.5, 0.5), left_wrist=(0.8, 0.5))
    visibility = np.ones(33)
    visibility[pose.landmark_index("left_wrist")] = 0.2
    label = pose.draw_pose(arm, visibility, min_visibility=0.5)
    assert label[32, 11].any() and not label[32, 22].any()
    arm[pose.landmark_index("left_wrist")] = np.nan
    np.testing.assert_array_equal(pose.draw_pose(arm), label)


def test_joints_outside_the_frame_are_cut_off() -> None:
    label = pose.draw_pose(body(right_hip=(0.5, 0.5), right_knee=(0.5, 2.0)))
    assert tuple(label[63, 16]) == COLORS["right_leg"] and not label[20].any()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(33, 2\)"):
        pose.draw_pose(np.zeros((17, 2)))
    with pytest.raises(ValueError, match=r"\(33,\)"):
        pose.draw_pose(np.zeros((33, 2)), np.ones(17))
