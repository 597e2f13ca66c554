"""The data sets by name, read into memory."""

from __future__ import annotations

from cvae_jax.data.clips import Recording
from cvae_jax.data.datasets import frame_folder, real_clips
from cvae_jax.errors import UserError

LOADERS = {"real_clips": real_clips.load, "frame_folder": frame_folder.load}


def load(
    name: str,
    *,
    data_dir: str | None,
    cache_dir: str,
    frame_size: tuple[int, int] | None,
) -> dict[str, list[Recording]]:
    """The recordings of a data set under the keys 'train' and 'validation'.

    name: a key of LOADERS.
    data_dir: the folder the user brings, for data sets that read one.
    cache_dir: where prepared data are kept; the first load of a content writes there.
    frame_size: (H, W), or None for the data set's own.

    Raises UserError for an unknown name and for whatever is wrong with the data.
    """
    if name not in LOADERS:
        raise UserError(
            f"There is no data set named {name}: set --config.data.name to one of "
            f"{', '.join(LOADERS)}."
        )
    return LOADERS[name](data_dir=data_dir, cache_dir=cache_dir, frame_size=frame_size)
