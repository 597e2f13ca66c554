"""Pictures of videos and of runs: GIFs, film strips, and curves.

Videos are uint8 frames of shape (T, H, W, 3). Every file appears whole or not at all.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cvae_jax.report.canvas import (
    BACKGROUND,
    BAR,
    GAP,
    Columns,
    Frames,
    check_videos,
    scale_to,
    text_width,
    write,
)
from cvae_jax.runtime.files import replacing

# Curves whose numbers come from looking at the frame to predict; a name may say more after these.
SEES_TARGET = ("posterior", "copy_previous", "oracle_training_frame")

_GRAYS = 16  # palette entries of a GIF kept for the text


def save_gif(
    path: str | os.PathLike,
    columns: dict[str, Frames],
    fps: int | float,
    scale: int | None = None,
) -> None:
    """Saves videos side by side as a GIF that loops for ever, each under its name.

    The frames of all columns have one shape (T, H, W, 3); a pixel becomes `scale` x `scale` of
    them, by default so many that the longer side of a frame is about 256 pixels. A line below
    counts the frames, so that none is merged with an equal neighbour and the file has T. Each frame
    has its own palette of 240 colours. A GIF counts time in hundredths of a second and viewers slow
    down below two, so the speed is the nearest of these to `fps`, and 50 frames a second at most.
    Raises TypeError for frames that are not uint8, and ValueError for no column, videos that are
    empty or differ in shape, or fps that is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}; it must be positive.")
    layout = Columns.of(columns, scale)
    width = next(iter(columns.values())).shape[2]

    def pages() -> Iterator[Image.Image]:
        for index in range(layout.count):
            # Colours are chosen on the small frames: quicker, and every pixel stays one colour.
            joined = np.concatenate([frames[index] for frames in columns.values()], axis=1)
            small = Image.fromarray(joined).quantize(
                256 - _GRAYS, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE
            )
            canvas = layout.page(index).point(lambda value: 256 - _GRAYS + value * _GRAYS // 256)
            canvas = Image.frombytes("P", canvas.size, canvas.tobytes())
            canvas.putpalette(_palette(small))
            for column, corner in enumerate(layout.corners):
                part = small.crop((column * width, 0, (column + 1) * width, small.height))
                canvas.paste(part.resize(layout.size, Image.Resampling.NEAREST), corner)
            yield canvas

    made = pages()
    with replacing(path) as partial:
        next(made).save(
            partial,
            format="GIF",
            save_all=True,
            append_images=made,
            duration=max(2, round(100 / fps)) * 10,
            loop=0,
            optimize=False,
        )


def image_strip(rows: dict[str, Frames], every: int = 1) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a film strip: a row per video, its name on the left, frame numbers above.

    The frames of all rows have one shape (T, H, W, 3); frames 0, every, 2 every, ... are shown,
    enlarged by a whole number until the longer side is about 128 pixels.
    Raises TypeError for frames that are not uint8, and ValueError for no row, videos that are empty
    or differ in shape, or `every` below 1.
    """
    check_videos(rows)
    if every < 1:
        raise ValueError(f"every is {every}; it must be at least 1.")
    count, height, width, _ = next(iter(rows.values())).shape
    shown = range(0, count, every)
    scale = scale_to(height, width, 128)
    cell = max([width * scale] + [text_width(str(index)) for index in shown])
    left = max(text_width(name) for name in rows) + 2 * GAP
    size = (left + len(shown) * (cell + GAP), BAR + len(rows) * (height * scale + GAP))
    strip = Image.new("RGB", size, (BACKGROUND,) * 3)
    for column, index in enumerate(shown):
        write(strip, left + column * (cell + GAP) + cell // 2, BAR // 2, str(index))
    for row, (name, frames) in enumerate(rows.items()):
        top = BAR + row * (height * scale + GAP)
        write(strip, left // 2, top + height * scale // 2, name)
        for column, index in enumerate(shown):
            frame = Image.fromarray(frames[index])
            frame = frame.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            margin = (cell - width * scale) // 2
            strip.paste(frame, (left + column * (cell + GAP) + margin, top))
    return np.array(strip)


def save_strip(path: str | os.PathLike, rows: dict[str, Frames], every: int = 1) -> None:
    """Saves `image_strip(rows, every)` as a PNG; same arguments and errors."""
    strip = Image.fromarray(image_strip(rows, every))
    with replacing(path) as partial:
        strip.save(partial, format="PNG")


def save_per_frame_psnr(
    path: str | os.PathLike, curves: dict[str, Sequence | np.ndarray], title: str
) -> None:
    """Saves the PSNR in dB of the predicted frames 1, 2, ... as a PNG, one line per curve.

    None and NaN (past the end of a short clip) leave gaps. Curves named after a row that sees the
    frame it predicts (`SEES_TARGET`) are dashed and say so in the legend.
    """
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in curves.items():
        leaks = name.startswith(SEES_TARGET)
        axes.plot(
            range(1, len(values) + 1),
            numbers(values),
            label=f"{name} (sees the target)" if leaks else name,
            linestyle="--" if leaks else "-",
            marker="." if len(values) <= 64 else "",
            linewidth=1.3,
        )
    axes.set(xlabel="predicted frame", ylabel="PSNR (dB)", title=title)
    finish(axes, legend=bool(curves))
    save_figure(path, figure)


def save_training_curves(path: str | os.PathLike, rows: Sequence[dict]) -> None:
    """Saves the course of a run as a PNG: loss under the teacher-forcing ratio, beta, and PSNR.

    `rows` are the lines of metrics.jsonl, one per epoch. Values that are None or not finite are
    left out; validation points are joined across the epochs without validation.
    Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("there are no epochs to draw.")
    epochs = np.array([row["epoch"] for row in rows])
    columns = {key: numbers([row.get(key) for row in rows]) for key in _CURVE_KEYS}
    figure = Figure(figsize=(9, 9), layout="constrained")
    loss_axes, beta_axes, psnr_axes = figure.subplots(3, 1, sharex=True)
    loss_axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)

    def draw(axes: Axes, key: str, label: str, **style: Any) -> None:
        known = ~np.isnan(columns[key])
        axes.plot(epochs[known], columns[key][known], label=label, **style)

    draw(loss_axes, "train_loss", "training loss", color="C0", marker=".")
    draw(loss_axes, "val_loss", "validation loss", color="C1", marker="o", markersize=4)
    losses = np.concatenate([columns["train_loss"], columns["val_loss"]])
    losses = losses[~np.isnan(losses)]
    if losses.size and losses.min() > 0 and losses.max() > 50 * losses.min():
        loss_axes.set_yscale("log")
    loss_axes.set(ylabel="loss", title="loss, and teacher forcing over it")
    forcing_axes = loss_axes.twinx()
    draw(forcing_axes, "teacher_forcing_ratio", "teacher-forcing ratio", color="C2", linestyle="--")
    draw(forcing_axes, "teacher_forced", "share forced", color="C2", marker="x", linestyle="")
    forcing_axes.set(ylabel="teacher forcing", ylim=(-0.05, 1.05))
    handles = [*loss_axes.get_lines(), *forcing_axes.get_lines()]
    forcing_axes.legend(handles, [line.get_label() for line in handles], fontsize=8)
    draw(beta_axes, "beta", "beta", color="C3", marker=".")
    beta_axes.set(ylabel="beta", title="weight of the KL term")
    draw(psnr_axes, "val_psnr_prior", "prior", color="C0", marker="o", markersize=4)
    sees = "posterior (sees the target)"
    draw(psnr_axes, "val_psnr_posterior", sees, color="C1", marker="o", markersize=4, ls="--")
    psnr_axes.set(xlabel="epoch", ylabel="PSNR (dB)", title="validation PSNR")
    finish(loss_axes, legend=False)
    finish(beta_axes, legend=False)
    finish(psnr_axes, legend=True)
    save_figure(path, figure)


_CURVE_KEYS = (
    "train_loss",
    "val_loss",
    "teacher_forcing_ratio",
    "teacher_forced",
    "beta",
    "val_psnr_prior",
    "val_psnr_posterior",
)


def _palette(small: Image.Image) -> list[int]:
    """Returns the colours of a picture, filled up to 240, and then the grays of the text."""
    colours = small.getpalette()
    assert colours is not None, "it is a picture of mode P"
    colours = colours + [0] * (3 * (256 - _GRAYS) - len(colours))
    grays = [round(index * 255 / (_GRAYS - 1)) for index in range(_GRAYS)]
    return colours + [gray for gray in grays for _ in range(3)]


def numbers(values: Sequence | np.ndarray) -> np.ndarray:
    """Returns float64 with NaN for None and for what is not finite."""
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    return np.where(np.isfinite(numbers), numbers, np.nan)


def finish(axes: Axes, legend: bool) -> None:
    """Give axes whole numbers on x, a grid, and a small legend if asked for."""
    cast(MaxNLocator, axes.xaxis.get_major_locator()).set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=8)


def save_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Save a figure as a PNG."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
