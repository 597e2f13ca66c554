"""Random changes of training clips, made on the devices: shifts, zoom, mirroring, brightness.

One draw serves a whole clip, its frames and its label images, so that they still belong together. It is
addressed by (seed, step, index of the clip in the global batch) and does not depend on the devices.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Num

from cvae_jax.data.pose import LIMBS
from cvae_jax.rollout.scan import Clips, as_float
from cvae_jax.runtime.errors import UserError

MOST_PIXELS = 2**16  # along the side of a frame


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The section `config.augment`; by default clips stay as they are.

    Attributes:
      shift: clips are shifted by up to this many whole pixels along each axis; the edges are repeated.
      zoom: clips are magnified about their centre by a factor within 1 +- this.
      mirror: half of the clips are mirrored. In label images the colours of left and right limbs are then
        exchanged (see `mirrored_colors`).
      brightness: frames are multiplied by a factor within 1 +- this.
    """

    shift: int = 0
    zoom: float = 0.0
    mirror: bool = False
    brightness: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.shift < MOST_PIXELS:
            raise UserError(f"config.augment.shift is {self.shift}; give a number of pixels, 0 for none.")
        for field in ("zoom", "brightness"):
            value = getattr(self, field)
            if not 0 <= value < 1:
                raise UserError(f"config.augment.{field} is {value}; give a number in [0, 1), 0 for none.")

    @property
    def moves_pixels(self) -> bool:
        """Whether more than the brightness is changed."""
        return self.shift > 0 or self.zoom > 0 or self.mirror

    def apply(self, clips: Clips, keys: Key[Array, " b"]) -> Clips:
        """Return the clips, each changed by the draws of its key; labels that are vectors stay the same."""
        if not self.moves_pixels and not self.brightness:
            return clips
        assert clips.frames is not None, "there are true frames to learn from"
        frames, labels = clips.frames, clips.labels
        of_shift, of_zoom, of_flip, of_light = jax.vmap(functools.partial(jax.random.split, num=4))(keys).T
        if self.moves_pixels:
            limit = self.shift
            shift = jax.vmap(lambda key: jax.random.randint(key, (2,), -limit, limit + 1))(of_shift)
            zoom = self._factor(of_zoom, self.zoom)
            flip = jax.vmap(jax.random.bernoulli)(of_flip) & self.mirror
            move = jax.vmap(_moved)
            frames = move(frames, shift, zoom, flip)
            if labels.ndim == frames.ndim:
                labels = move(labels, shift, zoom, flip)
                if self.mirror:
                    labels = jnp.where(flip[:, None, None, None, None], mirrored_colors(labels), labels)
        if self.brightness:
            light = self._factor(of_light, self.brightness)
            frames = jnp.clip(as_float(frames) * light[:, None, None, None, None], 0.0, 1.0)
        return dataclasses.replace(clips, frames=frames, labels=labels)

    def _factor(self, keys: Key[Array, " b"], width: float) -> Float[Array, " b"]:
        return 1.0 + width * jax.vmap(lambda key: jax.random.uniform(key, minval=-1.0))(keys)


def _moved(
    video: Num[Array, "t h w c"],
    shift: Num[Array, 2],
    zoom: Float[Array, ""],
    flip: Bool[Array, ""],
) -> Float[Array, "t h w c"]:
    """Return one clip in [0, 1], mirrored, magnified and shifted, with bilinear interpolation."""
    rows = _weights(video.shape[1], shift[0], zoom, jnp.zeros((), bool))
    columns = _weights(video.shape[2], shift[1], zoom, flip)
    return jnp.einsum("ij,tjkc,lk->tilc", rows, as_float(video), columns, precision="highest")


def _weights(
    size: int, shift: Num[Array, ""], zoom: Float[Array, ""], flip: Bool[Array, ""]
) -> Float[Array, "n n"]:
    """Return what each pixel along an axis is made of: weights (pixel of the result, pixel of the source)."""
    middle = (size - 1) / 2
    places = (jnp.arange(size) - middle) / zoom
    places = jnp.clip(jnp.where(flip, -places, places) + middle + shift, 0, size - 1)
    return jnp.maximum(1.0 - jnp.abs(places[:, None] - jnp.arange(size)[None]), 0.0)


def mirrored_colors(labels: Float[Array, "*n h w 3"]) -> Float[Array, "*n h w 3"]:
    """Return label images in [0, 1] with the colours of left and right limbs exchanged.

    The labels are those of `cvae_jax.data.pose.draw_pose`. A mirrored label needs it, since the person's left
    is then on the other side. Each pixel is taken to show the limb whose colour is most parallel to its own;
    what remains of its colour (another limb's edge, say) is kept.
    """
    names = [limb.name for limb in LIMBS]
    other = [names.index(_other_side(name)) for name in names]
    colors = jnp.asarray(np.array([limb.color for limb in LIMBS]) / 255, jnp.float32)
    norms = jnp.linalg.norm(colors, axis=1)
    along = jnp.einsum("...c,kc->...k", labels, colors / norms[:, None], precision="highest")
    limb = jnp.argmax(along, axis=-1)
    share = jnp.max(along, axis=-1) / norms[limb]
    changed = colors[np.array(other)] - colors
    return jnp.clip(labels + share[..., None] * changed[limb], 0.0, 1.0)


def _other_side(limb: str) -> str:
    for one, other in (("left_", "right_"), ("right_", "left_")):
        if limb.startswith(one):
            return limb.replace(one, other)
    return limb
