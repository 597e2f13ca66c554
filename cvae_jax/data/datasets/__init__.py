"""The data sets by name, read into memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvae_jax.data.clips import Recording
from cvae_jax.data.datasets import (
    bair,
    dancer,
    frame_folder,
    kth,
    moving_mnist,
    prepared,
    real_clips,
    stochastic_moving_mnist,
)
from cvae_jax.errors import UserError

LOADERS = {
    "real_clips": real_clips.load,
    "frame_folder": frame_folder.load,
    "dancer": dancer.load,
    "prepared": prepared.load,
    "stochastic_moving_mnist": stochastic_moving_mnist.load,
    "moving_mnist": moving_mnist.load,
    "kth": kth.load,
    "bair": bair.load,
}
# Those whose labels are images, of which a folder can be given to generate from.
IMAGE_LABELS = ("real_clips", "frame_folder", "prepared", "dancer")


def load(
    name: str,
    *,
    data_dir: str | None,
    cache_dir: str,
    frame_size: tuple[int, int] | None,
    options: Mapping[str, Mapping[str, Any]] = {},
) -> dict[str, list[Recording]]:
    """The recordings of a data set under the keys 'train' and 'validation', and 'test' where it has one.

    name: a key of LOADERS.
    data_dir: the folder the user brings, for data sets that read one.
    cache_dir: where prepared data are kept; the first load of a content writes there.
    frame_size: (H, W), or None for the data set's own.
    options: by data set, what else its load takes: its section of config.data.

    Raises UserError for an unknown name and for whatever is wrong with the data.
    """
    if name not in LOADERS:
        raise UserError(
            f"There is no data set named {name}: set --config.data.name to one of {', '.join(LOADERS)}."
        )
    return LOADERS[name](
        data_dir=data_dir, cache_dir=cache_dir, frame_size=frame_size, **options.get(name, {})
    )
