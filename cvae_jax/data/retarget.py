"""Motion transfer: the poses of one person placed where another person stands, at that one's size.

Global pose normalization of Everybody Dance Now (Chan et al., ICCV 2019): where the feet stand says how
far from the camera a person is. The range of standing places of the source is mapped onto that of the
target, and the body is scaled by the ratio of heights, interpolated between the nearest and the farthest
place. Needs NumPy only.

Keypoints are (T, 33, 2) in the order of `pose.LANDMARKS`, x and y in [0, 1] of the frame's width and
height, y downwards; NaN where a joint is not known. Both clips have frames of one aspect ratio.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cvae_jax.data.pose import LANDMARKS, landmark_index

# A foot counts as standing up to 1 + this times as far above the median as the nearest place lies below it:
# what is higher was raised, and says nothing of the distance.
RAISED = 0.7
NEAR = 0.25  # heights are taken in this part of the range, at either end
LEAST_DEPTH = 0.02  # of the frame's height; a smaller range is one distance seen unsteadily

_ANKLES = [landmark_index("left_ankle"), landmark_index("right_ankle")]
_HIPS = [landmark_index("left_hip"), landmark_index("right_hip")]
_NOSE = landmark_index("nose")


@dataclasses.dataclass(frozen=True)
class Stance:
    """Where and how large a person appears in a clip.

    close, far: y of the ankles at the nearest and the farthest place; equal at a constant distance.
    close_height, far_height: from nose to ankles there. hip_x: mean x of the hips.
    """

    close: float
    far: float
    close_height: float
    far_height: float
    hip_x: float


def stance(keypoints: np.ndarray) -> Stance:
    """Measure a clip's keypoints (T, 33, 2).

    The nearest place is the largest y of the lower ankle; the farthest is the smallest y that is not a
    raised foot (see RAISED). A height is the largest of those seen near the place: a bent body is smaller
    than a distant one. Raises ValueError where ankles, hips or nose are not known in every frame.
    """
    _check(keypoints)
    ankle = standing_ankle(keypoints)
    height = ankle - keypoints[:, _NOSE, 1]
    hip_x = float(keypoints[:, _HIPS, 0].mean())
    close, median = ankle.max(), np.median(ankle)
    stands = median - ankle <= (1 + RAISED) * (close - median)
    far = ankle[stands].min()
    if close - far < LEAST_DEPTH:
        place, tallest = float(np.median(ankle[stands])), float(height[stands].max())
        return Stance(place, place, tallest, tallest, hip_x)
    edge = NEAR * (close - far)
    return Stance(
        close=float(close),
        far=float(far),
        close_height=float(height[stands & (ankle >= close - edge)].max()),
        far_height=float(height[stands & (ankle <= far + edge)].max()),
        hip_x=hip_x,
    )


def retarget(keypoints: np.ndarray, source: Stance, target: Stance) -> np.ndarray:
    """Return keypoints (T, 33, 2) of the source person as if the target person moved so.

    With d in [0, 1] the place between the source's far and close (1/2 at a constant distance), the body is
    scaled by far + d (close - far) of the ratio of heights, target over source, and stands at
    far + d (close - far) of the target's places. What the ankles are above the farthest place is a jump and
    stays one, scaled. Across, the motion about the source's mean hip x is scaled and put about the target's.

    Raises ValueError where ankles, hips or nose are not known in every frame.
    """
    _check(keypoints)
    ground = np.clip(standing_ankle(keypoints), source.far, source.close)
    depth = source.close - source.far
    d = (ground - source.far) / depth if depth > 0 else np.full(len(ground), 0.5)
    far_scale = target.far_height / source.far_height
    close_scale = target.close_height / source.close_height
    scale = far_scale + d * (close_scale - far_scale)
    place = target.far + d * (target.close - target.far)
    moved = np.empty_like(keypoints)
    moved[..., 0] = target.hip_x + scale[:, None] * (keypoints[..., 0] - source.hip_x)
    moved[..., 1] = place[:, None] + scale[:, None] * (keypoints[..., 1] - ground[:, None])
    return moved


def stance_known(keypoints: np.ndarray) -> np.ndarray:
    """Return bool (T,): in which frames of (T, 33, 2) ankles, hips and nose are known."""
    return np.isfinite(keypoints[:, [_NOSE, *_HIPS, *_ANKLES]]).all(axis=(1, 2))


def standing_ankle(keypoints: np.ndarray) -> np.ndarray:
    """Return y of the lower ankle (T,): the foot that is more likely to stand."""
    return keypoints[:, _ANKLES, 1].max(axis=1)


def _check(keypoints: np.ndarray) -> None:
    if keypoints.ndim != 3 or keypoints.shape[1:] != (len(LANDMARKS), 2) or not len(keypoints):
        raise ValueError(f"keypoints must have shape (T, {len(LANDMARKS)}, 2), got {keypoints.shape}")
    if not stance_known(keypoints).all():
        raise ValueError("ankles, hips and nose must be known in every frame.")
