"""What runs in one process share: data in memory and compiled programs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_Value = TypeVar("_Value")


class Cache:
    """Values by key, each made once, for as long as the cache is kept.

    A mapped function is compiled when it is first called, so runs of one shape that share this object compile
    nothing twice. (A process that kept the programs of dozens of runs would also run out of memory maps.)
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._making = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """Return the value of a key, making it first where there is none; one thread makes at a time."""
        with self._making:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]
