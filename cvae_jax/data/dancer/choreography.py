"""What the dancer does at a frame: moves of the arms and of the legs, each on a jittered grid of beats.

Grid point k of a sequence holds its own draws, so a frame needs only the two points around it. Every second
stretch of the legs is danced on the spot; the ones between travel to the next place and facing in steps.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from cvae_jax.data.dancer import moves
from cvae_jax.data.dancer.chance import draws, ease, smooth_noise
from cvae_jax.data.dancer.moves import LEFT, RIGHT, Arms, Leg, Legs, Style

BEAT = 15  # frames
STRETCH = 3 * BEAT  # mean length of a move
JITTER = 9  # frames by which a move's start is moved at most
ARMS, LEGS, PLACES, SWAY = range(4)  # streams of draws
TOE_OUT = 0.25  # radians by which each foot points outwards
STEP_LIFT = 0.06


class Place(NamedTuple):
    """Where the dancer stands: x in [-1, 1] of the room, depth, facing, half of the feet's distance."""

    x: float
    depth: float
    yaw: float
    stance: float


class Foot(NamedTuple):
    """A foot: its ankle's x, depth and height over standing, its facing, how far its toes point down."""

    x: float
    depth: float
    lift: float
    yaw: float
    point: float


@dataclasses.dataclass(frozen=True)
class Posture:
    """Everything the skeleton needs: lengths in body heights, angles in radians, x in body heights."""

    x: float
    depth: float
    yaw: float
    legs: Legs
    feet: tuple[Foot, Foot]
    arms: Arms
    head_yaw: float
    head_pitch: float


@dataclasses.dataclass(frozen=True)
class Choreography:
    """One sequence's dance; address names it, room is how far from the middle it goes, in body heights."""

    address: tuple[int, ...]
    room: float

    def posture(self, frame: int) -> Posture:
        """Return the posture at a frame index >= 0."""
        point, u = _stretch((*self.address, LEGS), frame)
        legs = Legs()
        if point % 2 == 0:
            move, style = _leg_move((*self.address, LEGS), point)
            legs = move(u, style)
        start, end = (_place((*self.address, PLACES), (point + k) // 2) for k in (0, 1))
        x, depth, yaw, feet = self._travel(start, end, u)
        noise = smooth_noise((*self.address, SWAY), frame, 20, 4)
        bob = 0.5 - 0.5 * math.cos(2 * math.pi * frame / BEAT)
        legs.drop += 0.012 + 0.022 * bob
        legs.lean += 0.04 * noise[0]
        legs.twist += 0.10 * noise[1]
        legs.bend += 0.04 + 0.02 * bob
        left, right = (_moved(foot, legs.leg(side), side) for side, foot in enumerate(feet))
        facing = math.remainder(yaw, 2 * math.pi)
        look = -0.6 * facing if abs(facing) < 1.2 else 0.0  # to the camera, where it is near
        return Posture(
            x,
            depth,
            yaw,
            legs,
            (left, right),
            self._arms(frame),
            head_yaw=look * 0.7 + 0.25 * float(noise[2]),
            head_pitch=0.10 * bob + 0.08 * float(noise[3]),
        )

    def _arms(self, frame: int) -> Arms:
        address = (*self.address, ARMS)
        point, u = _stretch(address, frame)
        before, after = (_rest(address, k) for k in (point, point + 1))
        move, style = _arm_move(address, point)
        rest = moves.between(before, after, ease(u))
        return moves.between(rest, move(u, style), ease(u / 0.33) * ease((1 - u) / 0.33))

    def _travel(self, start: Place, end: Place, u: float) -> tuple[float, float, float, tuple[Foot, Foot]]:
        """Return x, depth and facing of the body, and the feet, on the way between two places."""
        turn = math.remainder(end.yaw - start.yaw, 2 * math.pi)
        way = (end.x - start.x) * self.room
        steps = max(1, min(3, math.ceil(max(abs(way) / 0.25, abs(turn) / 1.1))))

        def at(share: float) -> Place:
            return Place(
                start.x * self.room + share * way,
                start.depth + share * (end.depth - start.depth),
                start.yaw + share * turn,
                start.stance + share * (end.stance - start.stance),
            )

        step = min(int(u * steps), steps - 1)
        v = u * steps - step
        sideways = way * math.cos(start.yaw + turn / 2)  # towards the person's left if positive
        first = LEFT if sideways + 0.1 * turn > 0 else RIGHT
        feet = []
        for side in (LEFT, RIGHT):
            swing = (v - (0.05 if side == first else 0.5)) / 0.45
            share = ease(swing)
            place = at((step + share) / steps)
            sign = 1 if side == LEFT else -1
            moving = abs(way) + abs(turn) + abs(end.depth - start.depth) > 0
            feet.append(
                Foot(
                    place.x + sign * place.stance * math.cos(place.yaw),
                    place.depth - sign * place.stance * math.sin(place.yaw),
                    STEP_LIFT * 4 * share * (1 - share) if moving else 0.0,
                    place.yaw + sign * TOE_OUT,
                    2.0 * share * (1 - share) if moving else 0.0,
                )
            )
        body = at(0.5 * (step + ease(v)) / steps + 0.5 * ease(u))
        return body.x, body.depth, body.yaw, (feet[0], feet[1])


def _moved(foot: Foot, leg: Leg, side: int) -> Foot:
    sign = 1 if side == LEFT else -1
    yaw = foot.yaw - sign * TOE_OUT
    out = sign * leg.out
    return Foot(
        foot.x + out * math.cos(yaw) + leg.forward * math.sin(yaw),
        foot.depth - out * math.sin(yaw) + leg.forward * math.cos(yaw),
        foot.lift + leg.lift,
        foot.yaw,
        foot.point + leg.point,
    )


@functools.lru_cache(maxsize=1024)
def _start(address: tuple[int, ...], point: int) -> int:
    """Return the frame at which a grid point's move begins."""
    shift = int(draws(*address, point, 0).integers(-JITTER, JITTER + 1))
    return point * STRETCH + shift - (STRETCH // 2 if address[-1] == ARMS else 0)


def _stretch(address: tuple[int, ...], frame: int) -> tuple[int, float]:
    """Return the grid point (>= 0) whose move goes on at a frame, and the move's phase in [0, 1)."""
    shifted = frame + 2 * STRETCH  # no move starts before the sequence's points
    point = shifted // STRETCH
    while _start(address, point) > shifted:
        point -= 1
    while _start(address, point + 1) <= shifted:
        point += 1
    begin, end = _start(address, point), _start(address, point + 1)
    return point, (shifted - begin) / (end - begin)


def _style(rng: np.random.Generator) -> Style:
    return Style(int(rng.integers(1, 4)), float(rng.uniform(0.6, 1)), int(rng.integers(2)))


@functools.lru_cache(maxsize=1024)
def _arm_move(address: tuple[int, ...], point: int) -> tuple:
    rng = draws(*address, point, 1)
    return moves.ARM_MOVES[rng.integers(len(moves.ARM_MOVES))], _style(rng)


@functools.lru_cache(maxsize=1024)
def _leg_move(address: tuple[int, ...], point: int) -> tuple:
    rng = draws(*address, point, 1)
    return moves.LEG_MOVES[rng.integers(len(moves.LEG_MOVES))], _style(rng)


@functools.lru_cache(maxsize=1024)
def _rest(address: tuple[int, ...], point: int) -> Arms:
    """Return the arms between two moves."""
    rng = draws(*address, point, 2)
    one, other = (moves.RESTS[k] for k in rng.integers(len(moves.RESTS), size=2))
    return np.stack([one, other if rng.random() < 0.3 else one])


@functools.lru_cache(maxsize=1024)
def _place(address: tuple[int, ...], number: int) -> Place:
    rng = draws(*address, number)
    facing = rng.choice([0.0, 0.8, 1.57, 3.14], p=[0.46, 0.24, 0.18, 0.12]) * rng.choice([-1, 1])
    return Place(
        x=float(rng.uniform(-1, 1)),
        depth=float(rng.uniform(-0.08, 0.08)),
        yaw=float(facing + rng.uniform(-0.2, 0.2)),
        stance=float(rng.uniform(0.07, 0.12)),
    )
