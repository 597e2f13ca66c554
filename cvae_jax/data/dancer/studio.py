"""The still studio behind the dancer, and the soft shadow on its floor."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cvae_jax.data.dancer.body import TILT, Body, Camera
from cvae_jax.data.dancer.chance import draws
from cvae_jax.data.dancer.look import Look, mix, shaded

WALL_DEPTH = -1.0  # of the wall's foot, in body heights from the middle of the floor
STUDIO = 2  # stream of draws
TALL = 1.7  # of walls with room for pennants
SKY = ((150, 196, 240), (226, 238, 250))
HILL, FRAME = (92, 140, 84), (244, 242, 236)
SHADOW = 0.42  # of the floor's brightness in the darkest shadow
SOFT = 2  # pixels of the shadow's mask per pixel of the frame


def paint_studio(seed: int, look: Look, camera: Camera, oversampling: int) -> Image.Image:
    """Return the empty studio, `oversampling` times larger than the camera's frames."""
    height, width = (n * oversampling for n in camera.frame_size)
    unit = camera.scale * oversampling
    floor = camera.floor * oversampling
    foot = floor + unit * math.sin(TILT) * WALL_DEPTH
    half, top = width / 2 / unit, foot / unit  # of the room: half its width and the wall's height

    def box(x: float, low: float | int, w: float, high: float) -> tuple[float, float, float, float]:
        """Pixels of a rectangle on the wall: middle and heights over the wall's foot in body heights."""
        return (
            width / 2 + unit * (x - w / 2),
            foot - unit * high,
            width / 2 + unit * (x + w / 2),
            foot - unit * low,
        )

    side = -1.0 if look.window_left else 1.0
    shade = np.linspace(1.06, 0.86, width)[:: -1 if side > 0 else 1][None, :, None]
    falling = np.linspace(1.0, 0.93, height)[:, None, None]
    canvas = Image.fromarray(np.clip(np.array(look.wall) * shade * falling, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas, "RGBA")
    stripe = 0.11
    for k in range(math.ceil(half / stripe) + 1):  # wallpaper
        for sign in (-1, 1):
            draw.rectangle(box(sign * 2 * k * stripe, 0, stripe, top + 1), fill=(255, 255, 255, 26))
    rail = mix(look.wall, look.wood, 0.35)
    draw.rectangle(box(0.0, 0, 2 * half, 0.30), fill=(*rail, 150))  # panelling
    draw.rectangle(box(0.0, 0.30, 2 * half, 0.325), fill=shaded(rail, 0.8))
    _window(draw, box, side * 0.56 * half, 0.62 * half, 0.46, min(max(1.08, 0.62 * top), 0.92 * top), unit)
    _poster(draw, box, -side * 0.60 * half, 0.42 * half, 0.48, min(max(0.98, 0.5 * top), 0.88 * top), look)
    if top > TALL:
        _bunting(draw, box, half, 0.9 * top, look)
    draw.rectangle(box(0.0, 0, 2 * half, 0.065), fill=look.wood)  # skirting board
    draw.rectangle(box(0.0, 0.05, 2 * half, 0.065), fill=shaded(look.wood, 1.35))
    _floor(draw, seed, look, width, height, foot, unit)
    return canvas


def _window(draw, box, x: float, w: float, low: float, high: float, unit: float) -> None:
    draw.rectangle(box(x, low - 0.05, w + 0.12, high + 0.04), fill=FRAME)
    left, upper, right, lower = (round(n) for n in box(x, low, w, high))
    for y in range(upper, lower):
        share = (y - upper) / max(lower - upper, 1)
        draw.line((left, y, right, y), fill=mix(*SKY, share))
    draw.chord(box(x - 0.08 * w, low - 0.19, 0.84 * w, low + 0.21), 180, 360, fill=HILL)
    draw.chord(box(x + 0.3 * w, low - 0.1, 0.4 * w, low + 0.12), 180, 360, fill=shaded(HILL, 0.8))
    draw.rectangle(box(x, low - 0.05, w, low), fill=FRAME)
    for part in (-1 / 6, 1 / 6):
        draw.rectangle(box(x + part * w, low, 0.03, high), fill=FRAME)
    middle = low + 0.62 * (high - low)
    draw.rectangle(box(x, middle - 0.015, w, middle + 0.015), fill=FRAME)
    draw.rectangle(box(x, low - 0.06, w + 0.18, low - 0.015), fill=shaded(FRAME, 0.85))


def _poster(draw, box, x: float, w: float, low: float, high: float, look: Look) -> None:
    dark, middle, bright = look.poster
    draw.rectangle(box(x, low - 0.02, w + 0.04, high + 0.02), fill=look.wood)
    draw.rectangle(box(x, low, w, high), fill=bright)
    tall = high - low
    draw.ellipse(box(x, low + 0.42 * tall, 0.6 * w, low + 0.88 * tall), fill=middle)
    draw.ellipse(box(x + 0.1 * w, low + 0.5 * tall, 0.3 * w, low + 0.72 * tall), fill=dark)
    for k in (0.1, 0.22):
        draw.rectangle(box(x, low + k * tall, 0.75 * w, low + (k + 0.06) * tall), fill=dark)


def _bunting(draw, box, half: float, high: float, look: Look) -> None:
    """A string of pennants under the ceiling."""
    count = max(3, round(2 * half / 0.22))
    for k in range(count):
        x = half * (2 * (k + 0.5) / count - 1)
        string = high - 0.08 * (1 - (x / half) ** 2)
        left, upper, right, lower = box(x, string - 0.12, 1.5 * half / count, string)
        draw.polygon([(left, upper), (right, upper), ((left + right) / 2, lower)], fill=look.poster[k % 3])


def _floor(draw, seed: int, look: Look, width: int, height: int, foot: float, unit: float) -> None:
    """Planks that meet in a point far above the wall's foot."""
    draw.rectangle((0, foot, width, height), fill=look.floor)
    rng = draws(seed, STUDIO)
    vanishing = foot - 0.9 * unit
    reach = (height - vanishing) / (foot - vanishing)
    plank = 0.16 * unit
    for k in range(-math.ceil(width / plank), math.ceil(width / plank)):
        upper = [width / 2 + plank * n for n in (k, k + 1)]
        lower = [width / 2 + plank * n * reach for n in (k, k + 1)]
        color = shaded(look.floor, rng.uniform(0.84, 1.12))
        draw.polygon([(upper[0], foot), (upper[1], foot), (lower[1], height), (lower[0], height)], fill=color)
    draw.rectangle((0, foot, width, foot + 0.02 * unit), fill=(0, 0, 0, 70))


def cast_shadow(body: Body, camera: Camera, canvas: Image.Image, dark: Image.Image, side: float) -> None:
    """Darken the canvas where the dancer shades the floor; side is where the light comes from, -1 or 1."""
    height, width = camera.frame_size
    mask = Image.new("L", (SOFT * width, SOFT * height))
    draw = ImageDraw.Draw(mask)
    spots = []
    middle = body.pelvis * np.array([1.0, 0.0, 1.0])
    risen = max(body.pelvis[1] - 0.53, 0.0)
    spots.append((middle + np.array([-0.06 * side, 0.0, 0.02]), 0.30, 0.11, 0.55 / (1 + 4 * risen)))
    for name in ("left", "right"):
        ankle = body.joints[f"{name}_ankle"]
        lift = max(float(ankle[1]) - 0.045, 0.0)
        spot = np.array([ankle[0] - 0.03 * side, 0.0, ankle[2] + 0.03])
        spots.append((spot, 0.11, 0.045, 1.0 / (1 + 12 * lift)))
    for spot, wide, deep, strength in spots:
        x, y = camera.project(spot) * SOFT - 0.5
        rx, ry = (SOFT * camera.scale * radius for radius in (wide, deep))
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=round(255 * strength))
    mask = mask.filter(ImageFilter.GaussianBlur((SOFT * 0.03 * camera.scale, SOFT * 0.018 * camera.scale)))
    foot = round(SOFT * (camera.floor + camera.scale * math.sin(TILT) * WALL_DEPTH))
    mask.paste(0, (0, 0, SOFT * width, foot))  # the wall gets none
    canvas.paste(dark, (0, 0), mask.resize(canvas.size, Image.Resampling.BICUBIC))
