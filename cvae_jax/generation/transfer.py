"""Labels that let one clip's person move as another clip's does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cvae_jax.data import datasets
from cvae_jax.data.clips import Recording
from cvae_jax.data.pose import draw_pose
from cvae_jax.data.retarget import retarget, stance, stance_known
from cvae_jax.runtime.errors import UserError


def require_keypoints(data_name: str) -> Callable[[str | None], dict[str, np.ndarray]]:
    """Return the data set's `keypoints`; UserError where it has label images only."""
    keypoints = datasets.find(data_name).keypoints
    if keypoints is None:
        others = [name for name in datasets.names() if datasets.find(name).keypoints]
        raise UserError(
            f"--drive needs keypoints and the data set {data_name} has label images only; "
            f"it works with {', '.join(others)}."
        )
    return keypoints


def transfer_labels(
    data_name: str, person: Recording, driver: Recording, data_dir: str | None = None
) -> np.ndarray:
    """Return labels uint8 (T, H, W, 3) of the driver's poses, placed and sized as the person's.

    Label 0 is the person's own, since frame 0 is; label t is the driver's pose t. Place and size are
    measured over the whole scenes. data_dir: the folder of a data set that lies in one.

    Raises UserError where the data set has no keypoints, or nose, hips and ankles are not all known.
    """
    scenes = require_keypoints(data_name)(data_dir)
    for clip in (driver, person):
        known = stance_known(scenes[clip.scene])
        if not known[clip.start : clip.start + len(clip.frames)].all():
            raise UserError(
                f"The pose of {clip.name} is not known well enough for --drive (nose, hips and ankles in "
                "every frame): take another clip."
            )
    source, target = (
        stance(scenes[clip.scene][stance_known(scenes[clip.scene])]) for clip in (driver, person)
    )
    poses = scenes[driver.scene][driver.start : driver.start + len(driver.frames)]
    moved = retarget(poses[1:], source, target)
    size = person.frames.shape[1:3]
    return np.stack([person.labels[0], *(draw_pose(pose, frame_size=size) for pose in moved)])
