"""The environment of the pose model: MediaPipe needs an older NumPy than JAX."""

from __future__ import annotations

from pathlib import Path

from cvae_jax.runtime.tool_environment import ToolEnvironment

WAY_OUT = "give --keypoints=FILE with a pose found elsewhere"

POSE = ToolEnvironment(
    name="pose",
    tool="the pose model",
    requirements=Path(__file__).parent / "requirements-pose.txt",
    variable="CVAE_JAX_POSE_ENV",
    pythons=((3, 11), (3, 12), (3, 10)),  # for which there is this MediaPipe
    check="import mediapipe.python.solutions.pose",
    size="about 100 MB to download, 400 MB on disk",
    otherwise=WAY_OUT,
)
