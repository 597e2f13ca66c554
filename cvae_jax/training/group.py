"""Runs of one shape that train together on one device: each of their steps is one step of all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

Arguments = tuple[PyTree, PyTree, PyTree]
"""(state, batch, controls) of a run's step, as `make_train_step` describes them."""


def make_group_step(step: Callable) -> Callable:
    """Return the device function (states, batches, controls) -> (states, metrics) of several runs.

    Each argument and result is a tuple with one entry per run; step: the device function of one run. The runs
    share one program, and one kernel works for all of them. What the program decides by a run's own draw
    (teacher forcing) it computes both ways, because other runs may have drawn otherwise.
    """

    def group_step(states: tuple, batches: tuple, controls: tuple) -> tuple[tuple, tuple]:
        stacked = (_stack(trees) for trees in (states, batches, controls))
        number = len(states)
        return tuple(
            tuple(jax.tree.map(lambda leaf, run=run: leaf[run], tree) for run in range(number))
            for tree in jax.vmap(step)(*stacked)
        )  # type: ignore[return-value]

    return group_step


def _stack(trees: tuple) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


class Group:
    """The meeting point of runs that train in threads of their own.

    A run calls the function of `member` as it would call its own compiled step. The last run to call takes
    the step for all; the others wait for it. A run that leaves (it is done, or was stopped) is stood in for
    by another one's batches, with a state that nobody takes: nothing is compiled again.

    Args:
      size: how many runs there are; all must call, or leave.

    Attributes:
      size: the number of runs.
      in_turn: a lock, see `Member.in_turn`.
    """

    def __init__(self, size: int):
        self.size = size
        self._changed = threading.Condition()
        self._arguments: dict[int, Arguments] = {}
        self._results: dict[int, tuple | BaseException] = {}
        self._left: set[int] = set()
        self._stand_ins: dict[int, PyTree] = {}  # states of the runs that have left
        self._step: Callable | None = None
        self.in_turn = threading.RLock()

    @contextlib.contextmanager
    def member(self, number: int) -> Iterator[Member]:
        """Be run `number` of the group, from 0, while the context lasts."""
        try:
            yield Member(self, number)
        finally:
            self.leave(number)

    def take(self, number: int, make: Callable[[], Callable], arguments: Arguments) -> tuple:
        """Return the result of run `number`'s step; make: compiles the step of the group, once."""
        with self._changed:
            if self._step is None:
                self._step = make()
            self._arguments[number] = arguments
            self._take_if_complete()
            self._changed.wait_for(lambda: number in self._results)
            result = self._results.pop(number)
        if isinstance(result, BaseException):
            raise result
        return result

    def leave(self, number: int) -> None:
        """Take run `number` out of the steps to come; a run may leave twice."""
        with self._changed:
            self._left.add(number)
            self._take_if_complete()

    def _take_if_complete(self) -> None:
        """Take the step where all runs wait for it that have not left; the lock is held."""
        if not self._arguments or len(self._arguments) + len(self._left) < self.size:
            return
        present = sorted(self._arguments)
        try:
            assert self._step is not None, "a run that waits has made it"
            rows = [self._row(number, present[0]) for number in range(self.size)]
            states, metrics = self._step(*(tuple(part) for part in zip(*rows, strict=True)))
            self._results |= {number: (states[number], metrics[number]) for number in present}
            self._stand_ins = {number: states[number] for number in self._left}
        except BaseException as error:  # each run meets it
            self._results |= dict.fromkeys(present, error)
        self._arguments.clear()
        self._changed.notify_all()

    def _row(self, number: int, other: int) -> Arguments:
        """Return a run's arguments; those of one that has left are another's, with a state of their own."""
        if number in self._arguments:
            return self._arguments[number]
        state, *rest = self._arguments[other]
        if number not in self._stand_ins:
            self._stand_ins[number] = jax.tree.map(jnp.copy, state)
        return self._stand_ins[number], *rest


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a group."""

    group: Group
    number: int

    def step(self, make: Callable[[], Callable]) -> Callable:
        """Return what stands for the run's compiled step; make: compiles the group's, see `Group.take`."""
        return lambda *arguments: self.group.take(self.number, make, arguments)

    def in_turn(self, function: Callable) -> Callable:
        """Return a function that one run at a time calls: validations would need memory for each."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            with self.group.in_turn:
                return function(*arguments, **keywords)

        return run


class InTurn:
    """A validation, see `cvae_jax.training.loop.Validate`, that runs in one member at a time."""

    def __init__(self, validate: Any, member: Member):
        self.empty: dict[str, None] = validate.empty
        self._run = member.in_turn(validate.run)

    def run(self, *arguments: Any) -> Any | None:
        """Return what the validation returns."""
        return self._run(*arguments)
