"""Who dances and where, drawn from a seed: the colours of the person, the clothes and the studio."""

from __future__ import annotations

import colorsys
import dataclasses

from cvae_jax.data.dancer.chance import draws

Color = tuple[int, int, int]
# Skin and hair, which must be told apart in a head of six pixels.
HEADS = (
    ((240, 200, 172), (62, 38, 26)),
    ((232, 182, 146), (150, 66, 28)),
    ((222, 168, 128), (34, 26, 26)),
    ((244, 208, 182), (214, 168, 84)),
    ((176, 120, 82), (30, 22, 22)),
    ((138, 90, 60), (16, 12, 16)),
)
LOOK = 1  # stream of draws


def mix(one: Color, other: Color, share: float) -> Color:
    """Return the colour `share` of the way from one to the other."""
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(one, other, strict=True))
    return red, green, blue


def shaded(color: Color, factor: float) -> Color:
    """Return the colour darkened (factor below 1) or lightened."""
    red, green, blue = (min(255, round(channel * factor)) for channel in color)
    return red, green, blue


@dataclasses.dataclass(frozen=True)
class Look:
    """Colours, and the few measures that differ from seed to seed."""

    skin: Color
    hair: Color
    shirt: tuple[Color, Color]
    skirt: tuple[Color, Color]
    scarf: tuple[Color, Color]
    emblem: Color
    trousers: Color
    shoes: Color
    wall: Color
    floor: Color
    wood: Color
    poster: tuple[Color, Color, Color]
    skirt_length: float  # share of the thigh
    scarf_length: float  # in body heights
    window_left: bool

    @classmethod
    def of_seed(cls, seed: int) -> Look:
        """Return the look of a seed: saturated clothes before a pale wall."""
        rng = draws(seed, LOOK)

        def color(hue: float, saturation: float, value: float) -> Color:
            red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
            return round(255 * red), round(255 * green), round(255 * blue)

        hue = float(rng.random())
        shirt = color(hue, 0.85, 0.75)
        skin, hair = HEADS[rng.integers(len(HEADS))]
        return cls(
            skin=skin,
            hair=hair,
            shirt=(shirt, mix(shirt, (250, 248, 240), 0.85)),
            skirt=(color(hue + 0.5, 0.75, 0.55), color(hue + 0.5, 0.45, 0.85)),
            scarf=(color(hue + 0.75, 0.75, 0.95), color(hue + 0.75, 0.45, 1.0)),
            emblem=color(hue + 0.15, 0.7, 0.98),
            trousers=color(hue + rng.uniform(0.45, 0.6), 0.45, 0.28),
            shoes=color(rng.random(), 0.8, 0.85),
            wall=color(rng.random(), 0.14, rng.uniform(0.72, 0.84)),
            floor=color(rng.uniform(0.06, 0.10), rng.uniform(0.3, 0.5), rng.uniform(0.5, 0.62)),
            wood=color(rng.uniform(0.05, 0.09), 0.55, 0.36),
            poster=(
                color(rng.random(), 0.7, 0.35),
                color(rng.random(), 0.7, 0.8),
                color(rng.random(), 0.7, 0.95),
            ),
            skirt_length=float(rng.uniform(0.7, 0.95)),
            scarf_length=float(rng.uniform(0.26, 0.34)),
            window_left=bool(rng.integers(2)),
        )
