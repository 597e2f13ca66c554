"""The data sets: each module of this package defines one as DATA_SET, under its own name."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cvae_jax.data.clips import Recording
from cvae_jax.data.dataset import DataSet
from cvae_jax.runtime.errors import UserError
from cvae_jax.sections import section_of


def names() -> list[str]:
    """Return the names of all data sets, sorted: this folder's modules but for those that begin with _."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> DataSet:
    """Return the data set of a name; UserError if there is none."""
    if name not in names():
        raise UserError(
            f"There is no data set named {name}: set --config.data.name to one of {', '.join(names())}."
        )
    return importlib.import_module(f"{__name__}.{name}").DATA_SET


def sections() -> dict[str, ConfigDict]:
    """Return the default section `config.data.<name>` of every data set that has options."""
    classes = {name: find(name).options for name in names()}
    return {name: section_of(cls) for name, cls in classes.items() if cls is not None}


def check(data: ConfigDict) -> None:
    """Raise UserError if the section `config.data` names no data set, or holds an option that is refused."""
    find(data.name)
    for name in names():
        if find(name).options is not None:
            make_options(name, data[name].to_dict())


def make_options(name: str, section: Mapping[str, Any] | None) -> Any:
    """Return the options of the data set `name` that a section of the config gives; None if it has none.

    What the section leaves out is at its default. Raises UserError for an unknown option and for values
    that the data set refuses.
    """
    cls = find(name).options
    known = [field.name for field in dataclasses.fields(cls)] if cls else []
    for option in section or {}:
        if option not in known:
            raise UserError(
                f"The data set {name} has no option {option}: "
                f"{'choose from ' + ', '.join(known) if known else 'it has none at all'}."
            )
    return cls(**(section or {})) if cls else None


def load(
    name: str,
    *,
    data_dir: str | None,
    cache_dir: str,
    frame_size: tuple[int, int] | None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, list[Recording]]:
    """Return the recordings of a data set by split: 'train', 'validation', and 'test' where there is one.

    name: one of `names()`.
    data_dir: the folder the user brings, for data sets that read one.
    cache_dir: where prepared data are kept; the first load of a content writes there.
    frame_size: (H, W), or None for the data set's own.
    options: its section `config.data.<name>`; what is left out is at its default.

    Raises UserError for an unknown name or option and for whatever is wrong with the data.
    """
    made = make_options(name, options)
    return find(name).load(data_dir=data_dir, cache_dir=cache_dir, frame_size=frame_size, options=made)
