"""What is wrong with the fields of a config, in words."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

LARGEST_FLOAT = float(np.finfo(np.float32).max)
MOST_NAMED = 5  # missing fields of a section


def prefix(section: str | None) -> str:
    """Return 'config.a.b.' of the section 'a.b', '' where the section is not known."""
    if section is None:
        return ""
    return f"config.{section}." if section else "config."


def unknown_field(section: str | None, name: str, known: Iterable[str]) -> str:
    """Return that config.<section>.<name> is not a field, and the field that was probably meant."""
    place = prefix(section)
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"{place}{name} is not a field" + (f"; did you mean {place}{close[0]}?" if close else "")


def wrong_fields(config: ConfigDict, template: ConfigDict, section: str = "") -> Iterator[str]:
    """Yield what keeps a config from having the fields of `template`, with values of their types.

    An int may stand for a float, and None for a value that is None in `template`. A section that is empty
    in `template` is open: what it holds is not checked.
    """
    place = prefix(section)
    for name in config:
        if name not in template:
            yield unknown_field(section, name, template)
    if missing := [f"{place}{name}" for name in template if name not in config]:
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        yield f"missing: {', '.join(missing[:MOST_NAMED])}{more}"
    for name in [name for name in template if name in config]:
        default = template[name]
        value, kind = config[name], template.get_type(name)
        if isinstance(default, ConfigDict):
            if not isinstance(value, ConfigDict):
                yield f"{place}{name} is {value!r}; give a section of fields"
            elif len(default):
                yield from wrong_fields(value, default, f"{section}.{name}".lstrip("."))
        elif not (_is_a(value, kind) or value is None and default is None):
            yield f"{place}{name} is {value!r}; give a value of type {kind.__name__}"
        elif default and kind is tuple and not all(_is_a(entry, type(default[0])) for entry in value):
            yield f"{place}{name} is {value!r}; give values of type {type(default[0]).__name__}"


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else (tuple, list) if kind is tuple else kind)


def unusable_values(config: ConfigDict, section: str = "") -> Iterator[str]:
    """Yield the values of a config that fit no field: texts with NUL, and numbers the devices cannot hold.

    There, seeds are uint32, other whole numbers int32 and the rest float32, which must be finite.
    """
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from unusable_values(value, f"{section}.{name}".lstrip("."))
            continue
        bits = 32 if name == "seed" else 31
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, str) and "\0" in entry:
                yield f"{prefix(section)}{name} is {value!r}; leave out the character NUL"
            elif isinstance(entry, float) and not abs(entry) <= LARGEST_FLOAT:
                yield f"{prefix(section)}{name} is {value!r}; give a finite number that fits float32"
            elif isinstance(entry, int) and not -(2**bits) <= entry < 2**bits:
                bound = f"below 2**{bits}" if entry > 0 else f"of at least -2**{bits}"
                yield f"{prefix(section)}{name} is {value!r}; give a number {bound}"


def field_sentence(error: BaseException) -> str:
    """Return what is wrong with a field, where a ConfigDict refused its name or its value; else ''."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    refusing = [names["self"] for names in frames if isinstance(names.get("self"), ConfigDict)]
    if not refusing or not error.args:
        return ""
    text = error.args[0]
    text = str(text.args[0] if isinstance(text, KeyError) else text)  # an AttributeError wraps a KeyError
    # The config itself is a variable of the file, or of ml_collections where a flag is applied.
    whole = [value for names in frames for name, value in names.items() if name != "self"]
    paths = [
        path for config in whole if isinstance(config, ConfigDict) for path in _paths(config, refusing[-1])
    ]
    section = max(paths, key=len, default=None)
    if match := re.match(r"""'?(?:Key )?["'](\w+)["'](?: does not exist|\n|$)""", text):
        return unknown_field(section, match[1], refusing[-1])
    cast = r"Could not override field '(\w+)'.*?\. (.*) is of original type .*'(.*)'> .* type <class '(.*)'>"
    if match := re.match(cast, text, re.DOTALL):
        field, value, given, wanted = match.groups()
        wanted = wanted.split(".")[-1]
        return f"{prefix(section)}{field} is {value} of type {given}; give a value of type {wanted}"
    return ""


def _paths(config: ConfigDict, section: ConfigDict, path: str = "") -> Iterator[str]:
    """Yield 'a.b' of a section within a config, '' for the whole."""
    if config is section:
        yield path
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _paths(value, section, f"{path}.{name}".lstrip("."))
