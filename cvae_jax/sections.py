"""Config sections made from dataclasses, so that a field and its default are written down once."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict, FieldReference


def section_of(cls: type, exclude: Collection[str] = ()) -> ConfigDict:
    """Return a section with the fields of the dataclass `cls` and their defaults.

    A field annotated `T | None` accepts values of type T and None, whichever its default is. A default of
    1 for a field annotated `float` becomes 1.0, so that 0.5 is accepted later.

    exclude: fields that are no part of the section; only these may lack a default.

    Raises TypeError for another field without a default, and for a field whose default is None and whose
    annotation does not say which type it has otherwise.
    """
    section = ConfigDict()
    for field in dataclasses.fields(cls):
        if field.name in exclude or not field.init:
            continue
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            raise TypeError(f"{cls.__name__}.{field.name} has no default; a field of a section needs one.")
        kinds, optional = _kinds(_annotation(cls, field))
        if float in kinds and isinstance(default, int) and not isinstance(default, bool):
            default = float(default)
        if not optional and default is not None:
            section[field.name] = default
        elif len(kinds) == 1:
            section[field.name] = FieldReference(default, field_type=kinds[0])
        else:
            raise TypeError(
                f"{cls.__name__}.{field.name} may be None; annotate it with one other type, as in int | None."
            )
    return section


def _annotation(cls: type, field: dataclasses.Field) -> Any:
    """Return a field's annotation, read in the module of the class that declares it if it is a string."""
    if not isinstance(field.type, str):
        return field.type
    owner = next(base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", {}))
    return eval(field.type, dict(vars(sys.modules[owner.__module__])), dict(vars(owner)))


def _kinds(annotation: Any) -> tuple[list[type], bool]:
    """Return the types that an annotation allows besides None, and whether it allows None."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    kinds = [typing.get_origin(m) or m for m in members if m is not type(None)]
    return [kind for kind in kinds if isinstance(kind, type)], type(None) in members
