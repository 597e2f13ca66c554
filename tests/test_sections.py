"""Sections from dataclasses: which values a field accepts, and which fields there are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cvae_jax.sections import section_of


@dataclasses.dataclass(frozen=True)
class Options:
    count: int = 3
    rate: float = 1
    flag: bool = False
    label: str = "a"
    limit: int | None = None
    share: float | None = None
    name: str | None = None
    choice: bool | None = None
    size: tuple | None = None
    pair: tuple[int, int] | None = (1, 2)
    sizes: list = dataclasses.field(default_factory=lambda: [1])


class Plain:
    """A class whose annotations are objects, not strings."""

    __annotations__ = {"limit": int | None, "count": int}
    limit = None
    count = 2


def test_defaults_and_types() -> None:
    section = section_of(Options)
    assert section.to_dict() == {f.name: getattr(Options(), f.name) for f in dataclasses.fields(Options)}
    assert isinstance(section.rate, float)
    section.rate = 0.5
    for field, value in dict(limit=4, share=0.5, name="x", choice=True, size=(3, 4), pair=(5, 6)).items():
        assert getattr(section, field) in (None, (1, 2))
        section[field] = value
        assert section[field] == value
        section[field] = None
        assert section[field] is None
    for field, wrong in dict(count="x", limit="x", share="x", size=3, pair=3, rate="x").items():
        with pytest.raises(TypeError):
            section[field] = wrong


def test_annotations_that_are_no_strings() -> None:
    section = section_of(dataclasses.dataclass(Plain))
    assert section.to_dict() == {"limit": None, "count": 2}
    with pytest.raises(TypeError):
        section.limit = "x"


def test_excluded_fields_need_no_default() -> None:
    @dataclasses.dataclass
    class Model:
        axis: str
        width: int = 4
        parent: Any = None

    assert section_of(Model, exclude=("axis", "parent")).to_dict() == {"width": 4}
    with pytest.raises(TypeError, match="Model.axis has no default"):
        section_of(Model, exclude=("parent",))


def test_none_needs_a_type() -> None:
    @dataclasses.dataclass
    class Unclear:
        value: int | str | None = None

    with pytest.raises(TypeError, match="Unclear.value may be None; annotate it with one other type"):
        section_of(Unclear)


def test_fields_of_a_base_class_are_read_in_its_module() -> None:
    from flax import linen

    class Layer(linen.Module):
        features: int = 8
        depth: int | None = None

    section = section_of(Layer, exclude=("parent", "name"))
    assert section.to_dict() == {"features": 8, "depth": None}
    section.depth = 3
