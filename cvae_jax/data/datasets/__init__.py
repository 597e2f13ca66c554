"""The data sets by name, read into memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvae_jax.data.clips import Recording
from cvae_jax.data.datasets import dancer, frame_folder, prepared, real_clips
from cvae_jax.errors import UserError

LOADERS = {
    "real_clips": real_clips.load,
    "frame_folder": frame_folder.load,
    "dancer": dancer.load,
    "prepared": prepared.load,
}


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
    options: for data sets that are made to order (dancer), by their name: what else their load takes.

    Raises UserError for an unknown name and for whatever is wrong with the data.
    """
    if name not in LOADERS:
        raise UserError(
            f"There is no data set named {name}: set --config.data.name to one of "
            f"{', '.join(LOADERS)}."
        )
    return LOADERS[name](
        data_dir=data_dir, cache_dir=cache_dir, frame_size=frame_size, **options.get(name, {})
    )
