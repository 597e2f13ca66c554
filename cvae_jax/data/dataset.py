"""The interface of a data set. docs/data.md shows how to add one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from cvae_jax.data.clips import Recording
from cvae_jax.data.pose import STYLE, PoseStyle
from cvae_jax.runtime.errors import UserError

Splits = dict[str, list[Recording]]


@dataclasses.dataclass(frozen=True)
class TestSequence:
    """A test sequence of which only the first frames are there.

    given: uint8 (n_past, H, W, 3), its first frames. labels: uint8 (T, H, W, 3), one per frame.
    """

    __test__: ClassVar[bool] = False  # pytest would collect it for its name

    name: str
    given: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """How well frames can be predicted at all, where chance has a part in them.

    Attributes:
      recordings: those of a split, in its order, with the best prediction of each frame in its place.
      definition: says in a few words what they are.
    """

    recordings: list[Recording]
    definition: str


@dataclasses.dataclass(frozen=True)
class Poses:
    """The keypoints that the labels of a data set were drawn from.

    Attributes:
      keypoints: a function that returns those of a recording, float64 (T, 33, 2), as in `pose.draw_pose`; NaN
        where a joint is not known.
      style: how they are drawn.
    """

    keypoints: Callable[[Recording], np.ndarray]
    style: PoseStyle = STYLE

    @classmethod
    def of_scenes(cls, read: Callable[[], dict[str, np.ndarray]]) -> Poses:
        """Return those of a data set whose recordings are stretches of one clip for each scene.

        read: returns the keypoints of each scene's clip (T, 33, 2); it is called when they are first needed.
        """
        scenes = functools.cache(read)
        return cls(lambda one: scenes()[one.scene][one.start : one.start + len(one.frames)])


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What the program knows about a data set.

    Each module in `cvae_jax/data/datasets/` defines one as DATA_SET, under the module's name. Every config
    imports all of these modules, so what takes long to import belongs inside the functions that need it.

    Attributes:
      load: called as `load(data_dir=, cache_dir=, frame_size=, options=)`; returns the recordings of the
        splits 'train' and 'validation', and of 'test' if there is one. data_dir (str) is the user's folder
        or None. cache_dir (str) is where prepared data are kept (see `store.load_prepared`). frame_size is
        (H, W), or None for the data set's own. options is an instance of `options`, or None without that
        class. Raises UserError with one sentence for anything the user can fix.
      options: a frozen dataclass whose fields are the section `config.data.<name>`, each with a default and
        a comment. Its `__post_init__` raises UserError for values that make no sense; the functions
        `require_...` below do so. None: the data set has no options.
      image_labels: whether labels are images; then `generate.py --first` can be given a folder of them.
      default_frame_size: a function of data_dir that returns (H, W) of the frames where the config sets no
        frame size, without loading the data. None: the data must be loaded to know it.
      label_size: a function of the options that returns the length of labels that are vectors, without
        loading the data. None: labels are images, or the data must be loaded to know it.
      poses: called as `poses(data_dir=, frame_size=, options=)`, with arguments as those of `load`; returns
        the keypoints that the labels were drawn from. Motion transfer and dragging joints need them. None:
        labels are not drawn from keypoints, or these are not known.
      ceiling: called as `ceiling(split=, cache_dir=, frame_size=, options=)`, with arguments as those of
        `load`; returns the ceiling of a split. None: it is not known.
      read_test_sequences: a function of (data_dir, frame_size, n_past) that returns the test sequences of a
        data set which keeps them outside its splits, since only their first frames are there. None: they
        are the split 'test', if there is one.
    """

    load: Callable[..., Splits]
    options: type | None = None
    image_labels: bool = False
    default_frame_size: Callable[[str | None], tuple[int, int]] | None = None
    label_size: Callable[[Any], int] | None = None
    poses: Callable[..., Poses] | None = None
    ceiling: Callable[..., Ceiling] | None = None
    read_test_sequences: Callable[[str | None, tuple[int, int], int], list[TestSequence]] | None = None


def require_at_least(name: str, options: Any, **least: int | float) -> None:
    """Raise UserError if an option of the data set `name` is below its least value.

    None is accepted where it is the option's default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for option, smallest in least.items():
        value = getattr(options, option)
        if value is None and defaults[option] is None:
            continue
        if value is None or not value >= smallest:
            raise UserError(f"config.data.{name}.{option} is {value!r}; give at least {smallest}.")


def require_seed(name: str, options: Any) -> None:
    """Raise UserError unless the option `seed` of the data set `name` is one of NumPy's seeds, in 32 bits."""
    require_at_least(name, options, seed=0)
    if not options.seed < 2**32:
        raise UserError(f"config.data.{name}.seed is {options.seed!r}; give a number below 2**32.")


def require_choice(name: str, options: Any, **choices: tuple[str, ...]) -> None:
    """Raise UserError if an option of the data set `name` is none of its choices."""
    for option, known in choices.items():
        value = getattr(options, option)
        if value not in known:
            raise UserError(f"config.data.{name}.{option} is {value!r}; choose one of {', '.join(known)}.")
