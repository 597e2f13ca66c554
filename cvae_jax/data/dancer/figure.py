"""Painting the dancer: limbs, clothes and head, what is nearer over what is farther."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from cvae_jax.data.dancer.body import (
    HEAD_DEPTH,
    HEAD_HEIGHT,
    HEAD_WIDTH,
    NECK,
    SIDES,
    SPINE,
    Body,
    Camera,
)
from cvae_jax.data.dancer.look import Color, Look, mix, shaded

# The torso's outline: height over the hips, half width, half depth.
SECTIONS = np.array(
    [
        (-0.02, 0.088, 0.064),
        (0.09, 0.074, 0.054),
        (0.17, 0.086, 0.062),
        (0.24, 0.100, 0.066),
        (0.285, 0.108, 0.052),
        (0.318, 0.045, 0.034),
    ]
)
STRIPES = 9  # of the shirt
PANELS = 6  # of the skirt
LINKS = 5  # of the scarf
CLOTH_CHANNELS = 2 + LINKS  # skirt to the side and up, the scarf's links
CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 17)[:-1]) for f in (np.cos, np.sin)], axis=1)


def paint_figure(canvas: Image.Image, body: Body, look: Look, camera: Camera, cloth: np.ndarray) -> None:
    """Paint the dancer on a canvas a whole number of times larger than the camera's frames.

    cloth: (CLOTH_CHANNELS,), the swing of skirt and scarf: mean 0, standard deviation 1.
    """
    _Painter(canvas, body, look, camera, cloth).paint()


class _Painter:
    def __init__(
        self, canvas: Image.Image, body: Body, look: Look, camera: Camera, cloth: np.ndarray
    ) -> None:
        self.draw = ImageDraw.Draw(canvas, "RGBA")
        self.body, self.look, self.camera, self.cloth = body, look, camera, cloth
        self.zoom = canvas.width / camera.frame_size[1]
        self.unit = camera.scale * self.zoom
        self.light = -1.0 if look.window_left else 1.0
        names = list(body.joints)
        places = self.project(np.stack([body.joints[name] for name in names]))
        self.at = dict(zip(names, places, strict=True))

    def project(self, points: np.ndarray) -> np.ndarray:
        return self.camera.project(points) * self.zoom - 0.5

    def paint(self) -> None:
        body = self.body
        front = body.torso[2, 2] > 0
        middle = body.spine(0.2)[2]
        arms = []
        for name in SIDES:
            depth = (body.joints[f"{name}_elbow"][2] + 2 * body.joints[f"{name}_hand"][2]) / 3 - middle
            arms.append((depth, name))
        arms.sort()
        far = arms[0][0] < -0.03 and arms[0][0] < arms[1][0] - 0.05
        behind = [name for depth, name in arms if depth < -0.05]
        if front:
            self.scarf(-1.0, 0)
        for name in behind:
            self.arm(name, 0.82)
        for index, name in enumerate(sorted(SIDES, key=lambda side: body.joints[f"{side}_knee"][2])):
            self.leg(name, 0.86 if index == 0 else 1.0)
        self.skirt()
        self.capsule(self.at["neck"], self.at["head"], 0.030, 0.030, shaded(self.look.skin, 0.85))
        self.shirt()
        head_last = body.joints["head"][2] > middle - 0.05 or not front
        if not head_last:
            self.head()
        self.scarf(1.0 if front else -1.0, 1)
        if head_last:
            self.head()
        for depth, name in arms:
            if name not in behind:
                self.arm(name, 0.92 if far and depth < 0 else 1.0)

    def disc(self, at: np.ndarray, radius: float, color: Color) -> None:
        r = radius * self.unit
        self.draw.ellipse((at[0] - r, at[1] - r, at[0] + r, at[1] + r), fill=color)

    def capsule(self, start: np.ndarray, end: np.ndarray, r1: float, r2: float, color: Color) -> None:
        """A limb that tapers from one radius to another."""
        self.disc(start, r1, color)
        self.disc(end, r2, color)
        dx, dy = end - start
        length = math.hypot(dx, dy)
        if length > 1e-6:
            nx, ny = -dy / length * self.unit, dx / length * self.unit
            self.draw.polygon(
                [
                    (start[0] + r1 * nx, start[1] + r1 * ny),
                    (end[0] + r2 * nx, end[1] + r2 * ny),
                    (end[0] - r2 * nx, end[1] - r2 * ny),
                    (start[0] - r1 * nx, start[1] - r1 * ny),
                ],
                fill=color,
            )

    def band(self, start: np.ndarray, end: np.ndarray, radius: float, color: Color) -> None:
        """A flat stripe around a limb, from start to end along it."""
        dx, dy = end - start
        length = math.hypot(dx, dy)
        if length > 1e-6:
            side = np.array([-dy, dx]) * (radius * self.unit / length)
            corners = (start + side, end + side, end - side, start - side)
            self.draw.polygon([tuple(corner) for corner in corners], fill=color)

    def limb(self, start: np.ndarray, end: np.ndarray, r1: float, r2: float, color: Color) -> None:
        """A round limb: its lit side is lighter."""
        self.capsule(start, end, r1, r2, shaded(color, 0.80))
        shift = np.array([self.light * 0.22 * self.unit * (r1 + r2) / 2, 0.0])
        self.capsule(start + shift, end + shift, 0.72 * r1, 0.72 * r2, color)

    def leg(self, name: str, shade: float) -> None:
        hip, knee, ankle, toes, heel = (
            self.at[f"{name}_{joint}"] for joint in ("hip", "knee", "ankle", "foot_index", "heel")
        )
        shoe = shaded(self.look.shoes, shade)
        cloth = shaded(self.look.trousers, shade)
        self.capsule(heel, toes, 0.024, 0.018, shaded(shoe, 0.8))
        self.capsule(ankle, heel, 0.022, 0.022, shoe)
        self.capsule(ankle, toes, 0.022, 0.015, shoe)
        self.limb(knee, ankle, 0.036, 0.025, cloth)
        self.limb(hip, knee, 0.050, 0.037, cloth)

    def arm(self, name: str, shade: float) -> None:
        shoulder, elbow, wrist, hand = (
            self.at[f"{name}_{joint}"] for joint in ("shoulder", "elbow", "wrist", "hand")
        )
        skin = shaded(self.look.skin, shade)
        main, second = (shaded(color, shade) for color in self.look.shirt)
        self.limb(elbow, wrist, 0.026, 0.020, skin)
        self.capsule(wrist, hand, 0.018, 0.020, skin)
        cuff = shoulder + 0.95 * (elbow - shoulder)
        self.limb(shoulder, cuff, 0.040, 0.032, main)
        for share in (0.45, 0.8):
            band = shoulder + share * (elbow - shoulder)
            self.band(band, band + 0.16 * (elbow - shoulder), 0.039 - 0.008 * share, second)

    def width(self, sections: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """Half widths in the picture of elliptic cross-sections (n, 2): half width, half depth."""
        return self.unit * np.sqrt((sections[:, 0] * axes[0, 0]) ** 2 + (sections[:, 1] * axes[0, 2]) ** 2)

    def shirt(self) -> None:
        body = self.body
        heights = np.linspace(SECTIONS[0, 0], SECTIONS[-1, 0], STRIPES + 1)
        sizes = np.stack([np.interp(heights, SECTIONS[:, 0], SECTIONS[:, k]) for k in (1, 2)], axis=1)
        points = self.project(body.pelvis + heights[:, None] * body.torso[:, 1])
        axis = points[-1] - points[0]
        across = np.array([-axis[1], axis[0]]) / math.hypot(*axis)
        wide = self.width(sizes, body.torso)[:, None] * across
        one, other = points - wide, points + wide
        for k in range(STRIPES):
            quad = [tuple(p) for p in (one[k], other[k], other[k + 1], one[k + 1])]
            self.draw.polygon(quad, fill=self.look.shirt[k % 2])
        dark, bright = (one, other) if (other[0, 0] > one[0, 0]) == (self.light > 0) else (other, one)
        edge = dark + 0.28 * (bright - dark)
        self.draw.polygon([tuple(p) for p in (*dark, *edge[::-1])], fill=(0, 0, 0, 46))
        facing = body.torso[2, 2]
        if facing > 0.15:
            spot = body.spine(0.215) + 0.062 * body.torso[:, 2]
            self.disc(self.project(spot), 0.030 * math.sqrt(facing), self.look.emblem)
        elif facing < -0.15:
            corners = np.array([(-0.05, 0.13), (0.05, 0.13), (0.05, 0.25), (-0.05, 0.25)])
            flat = np.stack([corners[:, 0], corners[:, 1], np.full(4, -0.058)], axis=1)
            badge = self.project(body.pelvis + flat @ body.torso.T)
            self.draw.polygon([tuple(p) for p in badge], fill=self.look.emblem)

    def skirt(self) -> None:
        body, unit = self.body, self.unit
        share = self.look.skirt_length
        thighs = np.stack(
            [
                self.at[f"{name}_hip"] + share * (self.at[f"{name}_knee"] - self.at[f"{name}_hip"])
                for name in SIDES
            ]
        )
        order = np.argsort(thighs[:, 0])
        left, right = thighs[order]
        waist = self.project(body.spine(0.03))
        wide = float(self.width(np.array([[0.088, 0.066]]), body.torso)[0])
        flare = 0.068 * unit
        swing = 0.042 * unit * self.cloth[0]
        rise = 0.025 * unit * self.cloth[1]
        cover = 0.055 * unit  # the cloth swings outwards, and inwards only up to the leg
        hem_left = np.array([left[0] - max(flare - swing, cover), left[1] + rise + 0.35 * swing])
        hem_right = np.array([right[0] + max(flare + swing, cover), right[1] - rise - 0.35 * swing])
        hem_left[0] = min(hem_left[0], waist[0] - wide)
        hem_right[0] = max(hem_right[0], waist[0] + wide)
        for k in range(PANELS):
            a, b = k / PANELS, (k + 1) / PANELS
            sag = [0.03 * unit * 4 * s * (1 - s) for s in (a, b)]
            quad = [
                waist + ((2 * a - 1) * wide, 0),
                waist + ((2 * b - 1) * wide, 0),
                hem_left + b * (hem_right - hem_left) + (0, sag[1]),
                hem_left + a * (hem_right - hem_left) + (0, sag[0]),
            ]
            color = shaded(self.look.skirt[k % 2], 1.0 + 0.14 * self.light * (a + b - 1))
            self.draw.polygon([tuple(p) for p in quad], fill=color)

    def scarf(self, side: float, tail: int) -> None:
        """One end of the scarf, before (side 1) or behind (side -1) the body; tail 1 adds the loop."""
        body, look = self.body, self.look
        left, up, forward = body.torso.T
        if tail == 1:
            ring = [self.project(body.spine(NECK - 0.01) + s * 0.04 * left + 0.02 * forward) for s in (-1, 1)]
            self.capsule(ring[0], ring[1], 0.022, 0.022, look.scarf[0])
        sideways = 0.045 if side > 0 else -0.05
        point = body.spine(SPINE + 0.01) + sideways * left + side * (0.066 * forward)
        step = look.scarf_length / LINKS
        lean = 0.0
        places = [self.project(point)]
        for link in range(LINKS):
            lean += (0.10 + 0.03 * link) * self.cloth[2 + link] * (1.0 if tail else -1.0)
            down = np.array([math.sin(lean), -math.cos(lean), 0.0])
            point = point + step * (down + 0.03 * side * forward)
            places.append(self.project(point))
        for link in range(LINKS):
            self.capsule(places[link], places[link + 1], 0.021, 0.021, look.scarf[0])
        for link in range(1, LINKS, 2):
            self.band(places[link], places[link + 1], 0.021, look.scarf[1])

    def head(self) -> None:
        body, look = self.body, self.look
        left, up, forward = body.head.T
        middle = body.joints["head"]
        facing = float(forward[2])

        def ellipse(offset: np.ndarray, wide: float, deep: float, high: float, color: Color) -> None:
            center = self.project(middle + offset)
            top = self.project(middle + offset + high * up) - center
            half = self.unit * math.hypot(wide * left[0], deep * forward[0])
            across = np.array([-top[1], top[0]]) / max(math.hypot(*top), 1e-6) * half
            points = center + CIRCLE[:, :1] * across + CIRCLE[:, 1:] * top
            self.draw.polygon([tuple(p) for p in points], fill=color)

        def hair() -> None:
            ellipse(-0.030 * up - 0.030 * forward, HEAD_WIDTH + 0.014, 0.036, 0.050, shaded(look.hair, 0.85))
            crown = 0.014 * up - 0.012 * forward
            ellipse(crown, HEAD_WIDTH + 0.012, HEAD_DEPTH + 0.006, HEAD_HEIGHT, look.hair)

        def face() -> None:
            open_ = max(facing, 0.0)
            wide, deep = HEAD_WIDTH - 0.006, 0.028
            offset = (0.034 - 0.019 * open_) * forward - 0.018 * up
            ellipse(offset, wide, deep, HEAD_HEIGHT - 0.016, look.skin)
            self.disc(self.project(middle + 0.058 * forward - 0.012 * up), 0.011, shaded(look.skin, 0.9))
            if facing > 0.1:
                for sign in (-1, 1):
                    eye = middle + sign * 0.019 * left + 0.052 * forward + 0.006 * up
                    self.disc(self.project(eye), 0.0085, (40, 30, 30))
                mouth = [middle + s * 0.014 * left + 0.05 * forward - 0.036 * up for s in (-1, 1)]
                ends = [self.project(point) for point in mouth]
                self.capsule(ends[0], ends[1], 0.005, 0.005, mix(look.skin, (150, 30, 40), 0.7))

        for paint in (hair, face) if facing > 0 else (face, hair):
            paint()
