"""The library of moves, for the arms and for the legs.

A move is a function of its phase u in [0, 1]. Arms are directions (out, up, forward) of the upper arm and
the forearm in the frame of the torso, "out" away from the arm's own shoulder. Legs are what the move adds
to standing; every leg move begins and ends standing. Lengths are in body heights, angles in radians.
The module is long because it is a table: one entry for each move.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cvae_jax.data.dancer.chance import ease

LEFT, RIGHT = 0, 1


class Style(NamedTuple):
    """How one move is done this time."""

    cycles: int  # repetitions, 1 to 3
    amount: float  # size in [0.6, 1]
    side: int  # LEFT or RIGHT: the limb that leads


Direction = tuple[float | int, float | int, float | int]
Arm = np.ndarray  # (2, 3): direction of the upper arm and of the forearm
Arms = np.ndarray  # (2, 2, 3): left arm, right arm


def arm(upper: Direction, fore: Direction) -> Arm:
    """Return an arm of two directions, each (out, up, forward)."""
    return np.array([upper, fore], dtype=np.float64)


DOWN = arm((0.20, -1, 0.02), (0.14, -1, 0.2))
AKIMBO = arm((0.75, -0.7, -0.2), (-0.6, -0.65, 0.35))
GUARD = arm((0.3, -0.9, 0.1), (0.15, 0.45, 0.85))
LOW = arm((0.75, -0.7, 0.1), (0.85, -0.4, 0.2))
RAISED = arm((0.6, 0.8, 0.05), (0.35, 0.95, 0.05))
FORWARD = arm((0.1, -0.05, 1), (0.0, 0.05, 1))
GOALPOST = arm((1, 0.02, 0.05), (0.12, 1, 0.15))
RESTS: tuple[Arm, ...] = (DOWN, DOWN, AKIMBO, GUARD, LOW)


def units(directions: np.ndarray) -> np.ndarray:
    """Return directions (..., 3) with length 1."""
    return directions / np.sqrt(np.sum(directions * directions, axis=-1, keepdims=True))


def between(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Return unit directions (..., 3) between one and the other; opposite ones pass in front outside."""
    one, other = units(one), units(other)
    opposed = np.maximum(-np.sum(one * other, axis=-1, keepdims=True), 0)
    detour = 4 * share * (1 - share) * opposed * np.array([0.9, 0.0, 0.9])
    return units((1 - share) * one + share * other + detour)


def _both(one: Arm, other: Arm, side: int) -> Arms:
    """Return the two arms with `one` on the leading side."""
    return np.stack([one, other] if side == LEFT else [other, one])


def _wave(u: float, style: Style) -> Arms:
    swing = 0.75 * style.amount * math.sin(2 * math.pi * (style.cycles + 1) * u)
    return _both(arm((0.85, 0.35, 0.15), (0.15 + swing, 1, 0.15)), DOWN, style.side)


def _wave_both(u: float, style: Style) -> Arms:
    swing = 0.6 * style.amount * math.sin(2 * math.pi * style.cycles * u)
    left, right = (arm((0.5 + s / 2, 0.85, 0.1), (0.2 + s, 1, 0.1)) for s in (swing, -swing))
    return np.stack([left, right])


def _flap(u: float, style: Style) -> Arms:
    angle = 0.1 + 0.7 * style.amount * math.sin(2 * math.pi * style.cycles * u)
    late = 0.1 + 0.7 * style.amount * math.sin(2 * math.pi * style.cycles * u - 0.9)
    one = arm((math.cos(angle), math.sin(angle), 0.05), (math.cos(late), math.sin(late), 0.1))
    return np.stack([one, one])


def _snake(u: float, style: Style) -> Arms:
    def elevation(lag: float) -> tuple[float, float, float]:
        angle = 0.5 * style.amount * math.sin(2 * math.pi * style.cycles * u - lag)
        return (math.cos(angle), math.sin(angle), 0.1)

    return _both(arm(elevation(2.0), elevation(3.0)), arm(elevation(1.0), elevation(0.0)), style.side)


def _raise(u: float, style: Style) -> Arms:
    return np.stack([RAISED, RAISED])


def _reach(u: float, style: Style) -> Arms:
    return np.stack([FORWARD, FORWARD])


def _goalpost(u: float, style: Style) -> Arms:
    turn = 0.5 + 0.5 * math.cos(2 * math.pi * style.cycles * u)
    one = arm((1, 0.0, 0.1), (0.12, 1.6 * turn - 0.8, 0.5))
    return np.stack([one, one])


def _clap(u: float, style: Style) -> Arms:
    apart = 0.5 - 0.5 * math.cos(2 * math.pi * (style.cycles + 1) * u)
    if style.side == LEFT:
        one = arm((0.15 + 0.4 * apart, -0.5, 0.8), (-0.65 + 0.8 * apart, 0.35, 0.75))
    else:  # over the head
        one = arm((0.65 + 0.3 * apart, 0.75, 0.15), (-0.6 + 0.9 * apart, 0.85, 0.1))
    return np.stack([one, one])


def _punch(u: float, style: Style) -> Arms:
    stretch = 0.5 + 0.5 * math.sin(2 * math.pi * style.cycles * u)

    def one(s: float) -> Arm:
        return between(GUARD, FORWARD, s)

    return _both(one(stretch), one(1 - stretch), style.side)


def _disco(u: float, style: Style) -> Arms:
    share = 0.5 - 0.5 * math.cos(2 * math.pi * min(style.cycles, 2) * u)
    high = arm((0.7, 0.75, 0.15), (0.75, 0.7, 0.3))
    low = arm((0.2, -0.65, 0.75), (-0.5, -0.45, 0.8))
    return _both(between(low, high, share), AKIMBO, style.side)


def _windmill(u: float, style: Style) -> Arms:
    angle = 2 * math.pi * ease(u) * (1 if style.side == LEFT else -1)
    one = arm(
        (0.35, -math.cos(angle), math.sin(angle)),
        (0.25, -math.cos(angle - 0.2), math.sin(angle - 0.2) + 0.15),
    )
    return np.stack([one, one])


def _swing(u: float, style: Style) -> Arms:
    angle = 0.9 * style.amount * math.sin(2 * math.pi * style.cycles * u)
    left, right = (
        arm((math.sin(a), -math.cos(a), 0.25), (math.sin(1.3 * a), -math.cos(1.3 * a), 0.35))
        for a in (angle, -angle)
    )
    return np.stack([left, right])


ARM_MOVES: tuple[Callable[[float, Style], Arms], ...] = (
    _wave,
    _wave_both,
    _flap,
    _snake,
    _raise,
    _reach,
    _goalpost,
    _clap,
    _punch,
    _disco,
    _windmill,
    _swing,
)


@dataclasses.dataclass
class Leg:
    """A foot's way from where it stands: outwards, forwards, up; and how far its toes point down."""

    out: float = 0.0
    forward: float = 0.0
    lift: float = 0.0
    point: float = 0.0


@dataclasses.dataclass
class Legs:
    """What a leg move adds to standing."""

    left: Leg = dataclasses.field(default_factory=Leg)
    right: Leg = dataclasses.field(default_factory=Leg)
    drop: float = 0.0  # of the pelvis
    jump: float = 0.0  # of the whole body
    sway: float = 0.0  # of the pelvis, towards the person's left
    bend: float = 0.0  # of the torso, forwards
    lean: float = 0.0  # of the torso, towards the person's left
    twist: float = 0.0  # of the shoulders against the hips, to the left

    def leg(self, side: int) -> Leg:
        """Return the leg of a side."""
        return self.left if side == LEFT else self.right


def _pulses(u: float, count: int) -> float:
    return math.sin(math.pi * count * u) ** 2


def _plateau(u: float) -> float:
    return ease(u / 0.3) * ease((1 - u) / 0.3)


def _turn_of(u: float, style: Style) -> tuple[int, float]:
    """Return whose turn it is, when the sides alternate, and which sign that side has."""
    side = (style.side + int(u * style.cycles)) % 2
    return side, 1.0 if side == LEFT else -1.0


def _groove(u: float, style: Style) -> Legs:
    s = math.sin(2 * math.pi * style.cycles * u) * _plateau(u) * style.amount
    return Legs(sway=0.06 * s, lean=-0.12 * s, drop=0.02 * _plateau(u))


def _twisting(u: float, style: Style) -> Legs:
    s = math.sin(2 * math.pi * style.cycles * u) * _plateau(u) * style.amount
    return Legs(twist=0.7 * s, drop=0.05 * _plateau(u), sway=-0.02 * s)


def _squat(u: float, style: Style) -> Legs:
    e = _pulses(u, 1 + style.cycles // 3) * style.amount
    return Legs(Leg(), Leg(), drop=0.23 * e, bend=0.55 * e)


def _kick(u: float, style: Style) -> Legs:
    side, sign = _turn_of(u, style)
    e = _pulses(u, style.cycles)
    legs = Legs(sway=-0.06 * sign * e, bend=-0.15 * e, drop=0.01)
    foot = legs.leg(side)
    foot.forward, foot.lift, foot.point = 0.40 * e, (0.14 + 0.3 * style.amount) * e, -0.3 * e
    return legs


def _side_kick(u: float, style: Style) -> Legs:
    side, sign = _turn_of(u, style)
    e = _pulses(u, style.cycles) * style.amount
    legs = Legs(sway=-0.07 * sign * e, lean=-0.22 * sign * e, drop=0.01)
    foot = legs.leg(side)
    foot.out, foot.lift, foot.point = 0.33 * e, 0.22 * e, 0.3 * e
    return legs


def _march(u: float, style: Style) -> Legs:
    style = style._replace(cycles=style.cycles + 1)
    side, sign = _turn_of(u, style)
    e = _pulses(u, style.cycles)
    legs = Legs(sway=-0.04 * sign * e, drop=0.01)
    foot = legs.leg(side)
    foot.forward, foot.lift, foot.point = 0.13 * e, 0.27 * style.amount * e, 0.9 * e
    return legs


def _jump(u: float, style: Style) -> Legs:
    count = min(style.cycles, 2)
    w = (u * count) % 1.0
    flight = min(max((w - 0.3) / 0.4, 0.0), 1.0)
    height = 0.12 * style.amount * 4 * flight * (1 - flight)
    crouch = 0.11 * (_pulses(min(w / 0.3, 1.0), 1) + _pulses(max((w - 0.7) / 0.3, 0.0), 1))
    point = 6 * height
    return Legs(Leg(0.0, 0.0, height, point), Leg(0.0, 0.0, height, point), crouch, height, bend=3 * crouch)


def _jack(u: float, style: Style) -> Legs:
    """Two hops: feet apart, and together again."""
    wide = ease((2 * u - 0.3) / 0.4) * ease((2 - 2 * u - 0.3) / 0.4)
    legs = _jump(u, Style(2, 0.5 * style.amount, style.side))
    for foot in (legs.left, legs.right):
        foot.out = 0.13 * wide
    return legs


def _lunge(u: float, style: Style) -> Legs:
    sign = 1.0 if style.side == LEFT else -1.0
    w = _plateau(u)
    legs = Legs(sway=0.11 * sign * w, drop=0.10 * style.amount * w, lean=0.04 * sign * w)
    foot = legs.leg(style.side)
    foot.out, foot.lift = 0.22 * w, 0.2 * w * (1 - w)
    return legs


def _tap(u: float, style: Style) -> Legs:
    style = style._replace(cycles=style.cycles + 1)
    side, sign = _turn_of(u, style)
    e = _pulses(u, style.cycles) * style.amount
    legs = Legs(sway=-0.05 * sign * e, drop=0.03 * e, lean=0.06 * sign * e)
    foot = legs.leg(side)
    foot.out, foot.forward, foot.lift = 0.2 * e, 0.05 * e, 0.24 * e * (1 - e)
    return legs


LEG_MOVES: tuple[Callable[[float, Style], Legs], ...] = (
    _groove,
    _groove,
    _twisting,
    _squat,
    _kick,
    _side_kick,
    _march,
    _jump,
    _jack,
    _lunge,
    _tap,
)
