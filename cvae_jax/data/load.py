"""The data of a run: what the section `config.data` names, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cvae_jax.data import datasets
from cvae_jax.data.clips import Recording, data_hash
from cvae_jax.data.dataset import Ceiling, Poses
from cvae_jax.runtime import processes
from cvae_jax.runtime.cache import Cache
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import user_cache_folder
from cvae_jax.runtime.workdir import read_frame_size

DEFAULT_CACHE = user_cache_folder() / "data"


def load_data(data: ConfigDict, n_past: int, cache: Cache | None = None) -> dict[str, list[Recording]]:
    """Return the recordings of the section `config.data` by split, preparing them on first use.

    cache: runs of the same data share one copy in memory. Raises UserError where a recording that is to be
    predicted has no frame after its n_past context frames.
    """
    key = ("data", data.to_json(sort_keys=True), n_past)
    return (cache or Cache()).get(key, lambda: _load_alike(data, n_past))


def _load_alike(data: ConfigDict, n_past: int) -> dict[str, list[Recording]]:
    """Load the data in every process of the job; the first process of each host prepares them."""
    found = processes.first_of_host_first(lambda: _load(data, n_past))
    if processes.count() > 1:
        processes.require_same(
            "data", "\n".join(f"{name} {data_hash(split)}" for name, split in found.items())
        )
    return found


def load_ceiling(data: ConfigDict, split: str) -> Ceiling | None:
    """Return the ceiling of a split of the section `config.data`, prepared on first use; None: not known."""
    ceiling = datasets.find(data.name).ceiling
    if ceiling is None:
        return None
    return processes.first_of_host_first(
        lambda: ceiling(
            split=split,
            cache_dir=str(data.cache or DEFAULT_CACHE),
            frame_size=data.frame_size,
            options=datasets.make_options(data.name, _options(data)),
        )
    )


def load_poses(data: ConfigDict) -> Poses | None:
    """Return the keypoints that the labels of the section `config.data` were drawn from; None: not known."""
    poses = datasets.find(data.name).poses
    if poses is None:
        return None
    options = datasets.make_options(data.name, _options(data))
    return poses(data_dir=data.dir, frame_size=data.frame_size, options=options)


def known_frame_size(data: ConfigDict) -> tuple[int, int] | None:
    """Return (H, W) of the frames of the section `config.data`; None if only loading the data tells."""
    if data.frame_size is not None:
        return tuple(data.frame_size)
    default = datasets.find(data.name).default_frame_size
    return None if default is None else default(data.dir)


def trained_frame_size(config: ConfigDict, workdir: Path) -> tuple[int, int]:
    """Return (H, W) of the frames that a run was trained on; its data need not be here for it."""
    found = read_frame_size(workdir) or known_frame_size(config.data)
    return found or load_data(config.data, config.n_past)["validation"][0].frames.shape[1:3]


def known_shapes(
    data: ConfigDict, frame_size: tuple[int, int] | None = None
) -> tuple[tuple[int, int], int | None] | None:
    """Return (H, W) of the frames and the label size of the section `config.data`.

    The label size is the length of labels that are vectors, or None for images. Returns None if only loading
    the data tells. frame_size: (H, W) where it is known already.
    """
    data_set, frame_size = datasets.find(data.name), frame_size or known_frame_size(data)
    if frame_size is None or not (data_set.image_labels or data_set.label_size):
        return None
    if data_set.label_size is None:
        return frame_size, None
    return frame_size, data_set.label_size(datasets.make_options(data.name, _options(data)))


def _options(data: ConfigDict) -> dict[str, Any] | None:
    return data[data.name].to_dict() if datasets.find(data.name).options else None


def _load(data: ConfigDict, n_past: int) -> dict[str, list[Recording]]:
    found = datasets.load(
        data.name,
        data_dir=data.dir,
        cache_dir=str(data.cache or DEFAULT_CACHE),
        frame_size=data.frame_size,
        options=_options(data),
    )
    for split, recordings in found.items():
        for recording in recordings if split != "train" else ():
            if len(recording.frames) <= n_past:
                raise UserError(
                    f"The {split} recording {recording.name} of {data.name} has {len(recording.frames)} "
                    f"frames, of which config.n_past={n_past} are given: there is nothing to predict; lower "
                    "config.n_past or bring longer recordings."
                )
    return found
