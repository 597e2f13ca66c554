"""The dancer on film: frames, labels and keypoints of any sequence at any index, in any order."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from PIL import Image

from cvae_jax.data.dancer import body, figure, studio
from cvae_jax.data.dancer.chance import smooth_noise
from cvae_jax.data.dancer.choreography import Choreography
from cvae_jax.data.dancer.look import Look
from cvae_jax.data.pose import PoseStyle, draw_pose

FPS = 30
SPLITS = ("train", "validation", "test")
DANCE, CLOTH, LIGHT = 10, 11, 12  # streams of draws
LINE_WIDTH, HEAD_RADIUS = 0.075, 0.075  # of the labels, in body heights
FLICKER = 0.018  # standard deviation of the light, of its mean


@dataclasses.dataclass(frozen=True)
class Scene:
    """The dancer of a seed, filmed at 30 frames a second by a still camera of frame_size (H, W).

    What labels do not tell, the swing of the clothes and the flicker of the light, is drawn from `chance`.
    Person and studio depend on the seed alone, and the dance on (seed, split, sequence).
    """

    seed: int
    frame_size: tuple[int, int]
    chance: int = 0

    @functools.cached_property
    def camera(self) -> body.Camera:
        """The camera all of whose frames hold the whole dancer."""
        return body.Camera.for_frame(self.frame_size)

    @functools.cached_property
    def look(self) -> Look:
        """The person's and the studio's colours."""
        return Look.of_seed(self.seed)

    @functools.cached_property
    def oversampling(self) -> int:
        """How many times larger frames are painted."""
        return max(2, min(4, 384 // max(self.frame_size)))

    @functools.cached_property
    def _studio(self) -> tuple[Image.Image, Image.Image]:
        lit = studio.paint_studio(self.seed, self.look, self.camera, self.oversampling)
        return lit, lit.point(lambda value: value * studio.SHADOW)

    def _body(self, split: str, sequence: int, index: int) -> body.Body:
        address = (self.seed, DANCE, SPLITS.index(split), sequence)
        return body.build(Choreography(address, self.camera.room).posture(index))

    def keypoints(self, split: str, sequence: int, index: int) -> np.ndarray:
        """Return (33, 2), x and y in [0, 1], of MediaPipe's landmarks; NaN for those not in a label."""
        return body.keypoints(self._body(split, sequence, index), self.camera)

    def label(self, split: str, sequence: int, index: int) -> np.ndarray:
        """Return the label image, uint8 (H, W, 3)."""
        return self._label(self.keypoints(split, sequence, index))

    @property
    def label_style(self) -> PoseStyle:
        """How labels are drawn: thinner and with a smaller head the farther the camera is."""
        unit = self.camera.scale / self.frame_size[1]
        return PoseStyle(LINE_WIDTH * unit, HEAD_RADIUS * unit, 2 * self.oversampling)

    def _label(self, keypoints: np.ndarray) -> np.ndarray:
        return draw_pose(keypoints, frame_size=self.frame_size, style=self.label_style)

    def frame(self, split: str, sequence: int, index: int) -> np.ndarray:
        """Return the frame, uint8 (H, W, 3)."""
        return self._frame(self._body(split, sequence, index), split, sequence, index, self.chance)

    def mean_frame(self, split: str, sequence: int, index: int, draws: int) -> np.ndarray:
        """Return the mean of the frame over other draws of chance, chance + 1 .. chance + draws; uint8.

        It estimates the best prediction from the label in the mean-squared sense, the conditional mean.
        """
        dancer = self._body(split, sequence, index)
        others = range(self.chance + 1, self.chance + draws + 1)
        total = sum(self._frame(dancer, split, sequence, index, k).astype(np.float32) for k in others)
        return np.rint(total / draws).astype(np.uint8)

    def _frame(self, dancer: body.Body, split: str, sequence: int, index: int, chance: int) -> np.ndarray:
        address = (self.seed, chance, SPLITS.index(split), sequence)
        cloth = smooth_noise((*address, CLOTH), index, 7, figure.CLOTH_CHANNELS)
        light = smooth_noise((*address, LIGHT), index, 15, 1)[0]
        lit, dark = self._studio
        canvas = lit.copy()
        studio.cast_shadow(dancer, self.camera, canvas, dark, -1.0 if self.look.window_left else 1.0)
        figure.paint_figure(canvas, dancer, self.look, self.camera, cloth)
        pixels = np.asarray(canvas.reduce(self.oversampling), dtype=np.float32)
        gain = np.float32(1 + FLICKER * light)
        return np.clip(np.rint(pixels * gain), 0, 255).astype(np.uint8)

    def pair(self, split: str, sequence: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return frame and label at once."""
        dancer = self._body(split, sequence, index)
        return (
            self._frame(dancer, split, sequence, index, self.chance),
            self._label(body.keypoints(dancer, self.camera)),
        )
