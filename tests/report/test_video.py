"""MP4 films: every frame once, colours, sides that are odd."""

import imageio.v3 as iio
import numpy as np
import pytest

from cvae_jax.report.canvas import Columns
from cvae_jax.report.video import save_mp4


def clip(count=9, height=12, width=7, seed=0):
    """Smooth pictures whose brightness tells the frames apart."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 200, (1, 2, 2, 3))
    video = np.kron(small, np.ones((1, height // 2 + 1, width // 2 + 1, 1)))[:, :height, :width]
    return (video + 5 * np.arange(count)[:, None, None, None]).astype(np.uint8)


def test_film_has_every_frame_once_and_nearly_its_colours(tmp_path):
    columns = {"label": clip(seed=1), "sample 0": clip(seed=2)}
    save_mp4(tmp_path / "a.mp4", columns, fps=12.5, scale=5)
    layout = Columns.of(columns, 5)
    film = iio.imread(tmp_path / "a.mp4", plugin="pyav")
    width, height = layout.captions.size
    assert height % 2 == 0 and (width % 2, film.shape[2]) in ((0, width), (1, width + 1))
    assert film.shape == (9, height, film.shape[2], 3)
    about = iio.immeta(tmp_path / "a.mp4", plugin="pyav")
    assert about["fps"] == 12.5 and about["codec"] == "h264" and about["video_format"] == "yuv420p"
    assert about["duration"] == pytest.approx(9 / 12.5, abs=0.01)
    for frames, (x, y) in zip(columns.values(), layout.corners, strict=True):
        shown = film[:, y + 2 : y + 60 : 5, x + 2 : x + 35 : 5].astype(int)
        assert np.abs(shown - frames).mean() < 6
        brightness = shown.mean(axis=(1, 2, 3))
        np.testing.assert_allclose(np.diff(brightness), 5, atol=2)


@pytest.mark.parametrize("sides", [(11, 7), (12, 8)])
def test_odd_sides_and_one_frame(tmp_path, sides):
    save_mp4(tmp_path / "a.mp4", {"x": clip(1, *sides)}, fps=1, scale=1)
    film = iio.imread(tmp_path / "a.mp4", plugin="pyav")
    assert len(film) == 1 and film.shape[1] % 2 == film.shape[2] % 2 == 0


def test_what_does_not_fit_is_refused_and_leaves_the_old_film(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    for columns, fps in (({"x": clip(3)}, 0), ({"x": clip(3), "y": clip(4)}, 5), ({}, 5)):
        with pytest.raises(ValueError):
            save_mp4(path, columns, fps)
    with pytest.raises(TypeError):
        save_mp4(path, {"x": clip(3).astype(float)}, 5)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
