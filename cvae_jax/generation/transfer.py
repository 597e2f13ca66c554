"""Labels that let one clip's person move as another clip's does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from cvae_jax.data import datasets
from cvae_jax.data.clips import Recording
from cvae_jax.data.dataset import Poses
from cvae_jax.data.load import load_poses
from cvae_jax.data.pose import draw_pose
from cvae_jax.data.retarget import Stance, retarget, stance, stance_known
from cvae_jax.runtime.errors import UserError

MEASURED_FRAMES = 2000  # of a scene, which are enough to know where and how large its person is


def require_poses(data: ConfigDict) -> Poses:
    """Return the poses of the section `config.data`; UserError where it has label images only."""
    poses = load_poses(data)
    if poses is None:
        others = [name for name in datasets.names() if datasets.find(name).poses]
        raise UserError(
            f"--drive needs keypoints and the data set {data.name} has label images only; "
            f"it works with {', '.join(others)}."
        )
    return poses


def transfer_labels(
    poses: Poses, recordings: Iterable[Recording], person: Recording, driver: Recording
) -> np.ndarray:
    """Return labels uint8 (T, H, W, 3) of the driver's poses, placed and sized as the person's.

    Label 0 is the person's own, since frame 0 is; label t is the driver's pose t. Place and size are
    measured over the scenes, of which `recordings` holds all there are; see `scene_stance`.

    Raises UserError where nose, hips and ankles are not all known.
    """
    for clip in (driver, person):
        if not stance_known(poses.keypoints(clip)).all():
            raise UserError(
                f"The pose of {clip.name} is not known well enough for --drive (nose, hips and ankles in "
                "every frame): take another clip."
            )
    every = list(recordings)
    source, target = (scene_stance(poses, every, clip.scene) for clip in (driver, person))
    assert source is not None and target is not None, "the clips' own poses are known"
    moved = retarget(poses.keypoints(driver)[1:], source, target)
    size = person.frames.shape[1:3]
    drawn = (draw_pose(pose, frame_size=size, style=poses.style) for pose in moved)
    return np.stack([person.labels[0], *drawn])


def scene_stance(poses: Poses, recordings: Iterable[Recording], scene: str) -> Stance | None:
    """Return where and how large a scene's person is, None where no frame tells.

    It is measured on the scene's recordings, the shortest first, until they have MEASURED_FRAMES.
    """
    own = sorted((one for one in recordings if one.scene == scene), key=lambda one: len(one.frames))
    found, missing = [], MEASURED_FRAMES
    for recording in own:
        if missing > 0:
            part = slice(0, missing)
            seen = dataclasses.replace(
                recording, frames=recording.frames[part], labels=recording.labels[part]
            )
            found.append(poses.keypoints(seen))
            missing -= len(seen.frames)
    keypoints = np.concatenate(found)
    known = keypoints[stance_known(keypoints)]
    return stance(known) if len(known) else None
