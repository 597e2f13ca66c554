"""Report: files are opened again and compared with what went in; tables are read as text."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cvae_jax.report.figures import (
    image_strip,
    save_gif,
    save_per_frame_psnr,
    save_strip,
    save_training_curves,
)
from cvae_jax.report.tables import markdown_table, protocol_card, results_table

RED, GREEN, BLUE = (200, 10, 20), (10, 180, 30), (5, 15, 220)


def video(colour, frames=3, height=64, width=32):
    """A plain colour that gets darker by one a frame, with one black pixel at row 2, column t."""
    values = np.full((frames, height, width, 3), colour, np.uint8)
    for t in range(frames):
        values[t] -= t
        values[t, 2, t] = 0
    return values


def gif_frames(path):
    with Image.open(path) as image:
        info = dict(image.info)
        frames = []
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
            frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames), durations, info


def find_blocks(image, colour):
    """Returns the bounding box (top, bottom, left, right) of the pixels of a colour."""
    rows, columns = np.nonzero((image == np.array(colour)).all(-1))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


# GIFs


def test_gif_holds_every_frame_once_with_its_pixels(tmp_path):
    columns = {"truth": video(RED), "prediction": video(GREEN)}
    save_gif(tmp_path / "a.gif", columns, fps=10)
    frames, durations, info = gif_frames(tmp_path / "a.gif")
    assert len(frames) == 3 and durations == [100] * 3 and info["loop"] == 0
    for t, frame in enumerate(frames):
        boxes = [find_blocks(frame, np.array(colour) - t) for colour in (RED, GREEN)]
        for top, bottom, left, right in boxes:
            assert (bottom - top, right - left) == (256, 128)  # four times 64 x 32
            block = frame[top:bottom, left:right]
            expected = columns["truth" if left == boxes[0][2] else "prediction"][t]
            np.testing.assert_array_equal(block, expected.repeat(4, 0).repeat(4, 1))
        assert boxes[0][3] < boxes[1][2]  # in the order given, side by side
        assert boxes[0][0] == boxes[1][0] > 10  # below the captions
        assert (frame[: boxes[0][0]].min(axis=(0, 2)) < 100).sum() > 20  # the captions are dark


def test_gif_of_equal_frames_keeps_them_all(tmp_path):
    still = np.full((5, 16, 16, 3), 77, np.uint8)
    save_gif(tmp_path / "still.gif", {"truth": still}, fps=25, scale=2)
    frames, durations, _ = gif_frames(tmp_path / "still.gif")
    assert len(frames) == 5 and durations == [40] * 5
    assert len(np.unique(frames.reshape(5, -1), axis=0)) == 5  # the frame number differs


def test_gif_of_one_frame_and_narrow_columns(tmp_path):
    save_gif(tmp_path / "a.gif", {"a long caption": video(RED, 1, 12, 4)}, fps=1, scale=1)
    with Image.open(tmp_path / "a.gif") as image:
        frame = np.asarray(image.convert("RGB"))
    assert frame.shape[1] > 60  # wide enough for its caption
    top, bottom, left, right = find_blocks(frame, RED)
    assert (bottom - top, right - left) == (12, 4)


@pytest.mark.parametrize(("fps", "duration"), [(30, 30), (12, 80), (7.5, 130), (60, 20), (1000, 20)])
def test_gif_speed_is_the_nearest_the_format_has(tmp_path, fps, duration):
    save_gif(tmp_path / "a.gif", {"truth": video(RED, 2, 16, 16)}, fps, scale=1)
    assert gif_frames(tmp_path / "a.gif")[1] == [duration] * 2


def test_gif_of_many_colours_is_near(tmp_path):
    rows, columns = np.mgrid[0:32, 0:64]
    frame = np.stack([4 * columns, 8 * rows, 255 - 4 * columns], -1).astype(np.uint8)
    save_gif(tmp_path / "a.gif", {"truth": frame[None]}, fps=5, scale=1)
    with Image.open(tmp_path / "a.gif") as image:
        shown = np.asarray(image.convert("RGB")).astype(float)
    left = (shown.shape[1] - 64) // 2
    difference = shown[22 : 22 + 32, left : left + 64] - frame
    assert 0 < np.sqrt(np.mean(difference**2)) < 8
    assert np.abs(difference).max() < 40


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "a.gif"
    save_gif(path, {"truth": video(RED, 2)}, fps=5)
    before = path.read_bytes()

    def fail(self, partial, **kwargs):
        partial.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_gif(path, {"truth": video(BLUE, 2)}, fps=5)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["a.gif"]


@pytest.mark.parametrize("draw", [save_strip, lambda path, videos: save_gif(path, videos, 5)])
def test_videos_that_do_not_fit_are_refused(tmp_path, draw):
    for videos in ({}, {"a": video(RED), "b": video(RED, 2)}, {"a": video(RED, 0)}):
        with pytest.raises(ValueError, match="videos of one shape"):
            draw(tmp_path / "a", videos)
    with pytest.raises(TypeError):
        draw(tmp_path / "a", {"a": video(RED).astype(np.float32)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, math.nan])
def test_gif_refuses_a_speed_that_is_not_positive(tmp_path, fps):
    with pytest.raises(ValueError, match="fps"):
        save_gif(tmp_path / "a.gif", {"a": video(RED)}, fps)


# Film strips


def test_strip_shows_every_other_frame_in_rows(tmp_path):
    rows = {"truth": video(RED, 6), "prediction": video(BLUE, 6)}
    save_strip(tmp_path / "strip.png", rows, every=2)
    with Image.open(tmp_path / "strip.png") as image:
        assert image.mode == "RGB" and image.format == "PNG"
        strip = np.asarray(image)
    np.testing.assert_array_equal(strip, image_strip(rows, every=2))
    boxes = {}
    for name, colour in (("truth", RED), ("prediction", BLUE)):
        for t in (0, 2, 4):
            top, bottom, left, right = find_blocks(strip, np.array(colour) - t)
            expected = rows[name][t].repeat(2, 0).repeat(2, 1)
            np.testing.assert_array_equal(strip[top:bottom, left:right], expected)
            boxes[name, t] = (top, left)
        assert not (strip == np.array(colour) - 1).all(-1).any()  # frame 1 is not shown
    assert boxes["truth", 0][1] < boxes["truth", 2][1] < boxes["truth", 4][1]
    assert boxes["truth", 0][0] == boxes["truth", 4][0] < boxes["prediction", 0][0]
    assert boxes["truth", 2][1] == boxes["prediction", 2][1]
    top, left = boxes["truth", 0]
    assert strip[:top].min() < 100 and strip[:, :left].min() < 100  # numbers and names


def test_image_strip_of_landscape_frames_and_its_refusal():
    frames = video(GREEN, 4, 32, 64)
    strip = image_strip({"truth": frames})
    assert strip.dtype == np.uint8 and strip.ndim == 3 and strip.shape[2] == 3
    assert 4 * 128 < strip.shape[1] < 4 * 128 + 120 and 64 < strip.shape[0] < 100
    with pytest.raises(ValueError, match="every is 0"):
        image_strip({"truth": frames}, every=0)


# Curves


@pytest.fixture
def figures(monkeypatch):
    """Collects the figures that are saved, so that a test can read their lines."""
    saved = []
    save = Figure.savefig

    def collect(self, *args, **kwargs):
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", collect)
    return saved


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_per_frame_psnr_curves(tmp_path, figures):
    curves = {
        "prior": [30.0, 29.0, None, 27.5],
        "posterior": np.array([33.0, 32.0, np.nan, np.inf]),
        "copy_previous, epoch 50": [36, 36, 36, 36],
        "prior_mean": [],
    }
    save_per_frame_psnr(tmp_path / "psnr.png", curves, "validation")
    with Image.open(tmp_path / "psnr.png") as image:
        assert image.size == (1080, 540) and np.asarray(image.convert("L")).min() < 100
    (axes,) = figures[0].axes
    lines = lines_of(axes)
    assert list(lines) == [
        "prior",
        "posterior (sees the target)",
        "copy_previous, epoch 50 (sees the target)",
        "prior_mean",
    ]
    assert [line.get_linestyle() for line in lines.values()] == ["-", "--", "--", "-"]
    np.testing.assert_array_equal(lines["prior"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(lines["prior"].get_ydata(), [30.0, 29.0, np.nan, 27.5])
    np.testing.assert_array_equal(
        lines["posterior (sees the target)"].get_ydata(), [33.0, 32.0, np.nan, np.nan]
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted frame", "PSNR (dB)")
    assert axes.get_title() == "validation" and axes.get_legend() is not None


def epoch_row(epoch, **changes):
    row = {
        "epoch": epoch,
        "train_loss": 2.0 / (epoch + 1),
        "recon": 1.0,
        "kl": 0.1,
        "beta": 1,
        "teacher_forcing_ratio": 0.95,
        "teacher_forced": True,
        "learning_rate": 1e-4,
        "val_loss": None,
        "val_psnr_prior": None,
        "val_psnr_posterior": None,
    }
    return {**row, **changes}


def test_training_curves_leave_out_what_is_not_there(tmp_path, figures):
    rows = [epoch_row(e) for e in range(5)]
    rows[2] |= {"val_loss": 0.5, "val_psnr_prior": 21.0, "val_psnr_posterior": 24.0}
    rows[4] |= {"val_loss": 0.4, "val_psnr_prior": 22.0, "teacher_forced": False}
    rows[3]["train_loss"] = float("nan")
    save_training_curves(tmp_path / "curves.png", rows)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1080, 1080)
    loss, beta, psnr, forcing = figures[0].axes
    np.testing.assert_array_equal(lines_of(loss)["training loss"].get_xdata(), [0, 1, 2, 4])
    np.testing.assert_array_equal(lines_of(loss)["validation loss"].get_xydata(), [[2, 0.5], [4, 0.4]])
    np.testing.assert_array_equal(lines_of(psnr)["prior"].get_ydata(), [21.0, 22.0])
    posterior = lines_of(psnr)["posterior (sees the target)"]
    assert posterior.get_ydata().tolist() == [24.0] and posterior.get_linestyle() == "--"
    np.testing.assert_array_equal(lines_of(beta)["beta"].get_ydata(), [1.0] * 5)
    np.testing.assert_array_equal(lines_of(forcing)["teacher-forcing ratio"].get_ydata(), [0.95] * 5)
    np.testing.assert_array_equal(lines_of(forcing)["share forced"].get_ydata(), [1, 1, 1, 1, 0])
    assert loss.get_yscale() == "linear"


def test_training_curves_of_one_epoch_of_none_and_of_a_wide_loss(tmp_path, figures):
    save_training_curves(tmp_path / "one.png", [epoch_row(0)])
    save_training_curves(tmp_path / "none.png", [epoch_row(0, train_loss=None)])
    save_training_curves(tmp_path / "wide.png", [epoch_row(0), epoch_row(1, train_loss=1e4)])
    assert [figure.axes[0].get_yscale() for figure in figures] == ["linear", "linear", "log"]
    with pytest.raises(ValueError, match="no epochs"):
        save_training_curves(tmp_path / "empty.png", [])
    assert not (tmp_path / "empty.png").exists()


# Tables


def test_markdown_table_is_aligned_and_escaped():
    assert markdown_table(["name", "x"], [["a|b", 1], ["longer", 22.5]]).splitlines() == [
        "| name   |    x |",
        "| ------ | ---: |",
        "| a\\|b   |    1 |",
        "| longer | 22.5 |",
    ]
    assert markdown_table(["a"], []) == "| a   |\n| --- |"
    with pytest.raises(ValueError, match="does not fit the header"):
        markdown_table(["a", "b"], [["only one"]])


def result(name, psnr, sees_target=False, interval=None, ssim=0.9, spread=None, **more):
    row = {"name": name, "psnr": psnr, "psnr_ci95": interval, "ssim": ssim, "ssim_ci95": None}
    row |= {"psnr_seed_std": spread, "ssim_seed_std": None}
    row |= {"per_frame_psnr": [psnr], "sees_target": sees_target}
    return row | more


def test_results_table_in_full():
    results = {
        "protocol": {
            "split": "validation",
            "checkpoint": "best",
            "samples": 10,
            "clipped": True,
            "frame_size": [64, 32],
            "z": {"prior": "N(0, I)", "scale": None},
        },
        "rows": [
            result("prior", 27.126, interval=[26.0, 28.5], spread=0.123, ssim_ci95=[0.8, 0.95]),
            result("star_prior", 20.0, scene="star_jump"),
            result("prior_best_of_N", 28.0, n=10, ssim=None),
            result("prior_scaled", 27.5, temperature=0.5),
            result("posterior", 31.5, sees_target=True, ssim=0.98765),
            result("posterior", None, sees_target=True, scene="star_jump"),
            result("prior", float("nan"), scene="beam_cam1"),
        ],
        "latents": {
            "kl_nats_per_frame": 12.345,
            "active_units": 20,
            "active_units_share": 0.05,
            "psnr_gap": 1.5,
            "diversity": 31.25,
            "correlation": 0.961,
        },
    }
    lines = results_table(results).splitlines()
    assert (
        lines[0] == "Checkpoint `best`: chosen on the very clips of this table, so its rows are optimistic."
    )
    assert lines[2:24] == [
        "### Protocol",
        "",
        "- split: validation",
        "- checkpoint: best",
        "- samples: 10",
        "- clipped: yes",
        "- frame_size: 64, 32",
        "- z: prior = N(0, I), scale = -",
        "",
        "### Mean over scenes",
        "",
        "|                  | PSNR (dB) | 95 % over clips | over draws |  SSIM | 95 % over clips | over draws |",  # noqa: E501
        "| ---------------- | --------: | --------------: | ---------: | ----: | --------------: | ---------: |",  # noqa: E501
        "| prior            |     27.13 |  [26.00, 28.50] |     ± 0.12 | 0.900 |  [0.800, 0.950] |          - |",  # noqa: E501
        "| prior_best_of_10 |     28.00 |               - |          - |     - |               - |          - |",  # noqa: E501
        "| prior_scaled_0.5 |     27.50 |               - |          - | 0.900 |               - |          - |",  # noqa: E501
        "| posterior †      |     31.50 |               - |          - | 0.988 |               - |          - |",  # noqa: E501
        "",
        "### Scene star_jump",
        "",
        "|             | PSNR (dB) | 95 % over clips | over draws |  SSIM | 95 % over clips | over draws |",
        "| ----------- | --------: | --------------: | ---------: | ----: | --------------: | ---------: |",
    ]
    assert lines[-5:] == [
        "† sees the frame it predicts, or the true frame before it: not a prediction.",
        "",
        "### Latents",
        "",
        "KL 12.3 nats per frame; 20 active units (5.0 %); posterior minus prior +1.500 dB; "
        "diversity 31.2 dB (PSNR between two samples of a clip). Between successive frames, the "
        "posterior's deviation from the prior has a correlation of 0.96.",
    ]


def test_latents_that_are_not_finite_are_shown_as_missing():
    latents = {"kl_nats_per_frame": None, "active_units": 0, "active_units_share": 0.0, "psnr_gap": None}
    latents |= {"diversity": None, "correlation": 0.0}
    text = results_table({"protocol": {"checkpoint": "last"}, "rows": [], "latents": latents})
    assert text.splitlines()[0] == "Checkpoint `last`: not chosen by any score."
    assert "KL - nats per frame; 0 active units (0.0 %); posterior minus prior - dB;" in text
    assert "The samples coincide" not in text and "correlation" not in text  # no unit is active


@pytest.mark.parametrize("diversity, coincide", [(100.0, True), (60.0, True), (59.9, False)])
def test_the_table_says_where_samples_coincide(diversity, coincide):
    latents = {"kl_nats_per_frame": 0.0, "active_units": 0, "active_units_share": 0.0, "psnr_gap": 0.0}
    results = {"protocol": {}, "rows": [], "latents": latents | {"diversity": diversity}}
    told = "The samples coincide: the latent does not change the video." in results_table(results)
    assert told == coincide


def test_the_way_to_the_ceiling_is_a_column_where_it_is_known():
    rows = [result("prior", 30.0, way_to_ceiling=0.6251), result("posterior", 31.0, sees_target=True)]
    text = results_table({"protocol": {}, "rows": rows})
    table = text.split("### Results")[1].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    place = cells[0].index("share of gap")
    assert (cells[2][place], cells[3][place]) == ("63 %", "-")
    assert "Share of gap: of the PSNR between nearest_pose (0 %) and the ceiling (100 %)." in text
    assert "share of gap" not in results_table({"protocol": {}, "rows": [result("prior", 30.0)]}).lower()


def test_other_metrics_have_columns_where_they_hold_a_number():
    rows = [
        result("prior", 20.0, lpips=0.12344, lpips_ci95=[0.1, 0.15], fvd_16=512.34, psnr_person=18.0),
        result("copy_first", 21.0, lpips=0.25, lpips_ci95=[0.2, 0.3], psnr_person=None),
    ]
    table = results_table({"protocol": {}, "rows": rows}).split("### Results")[1].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")][7:] for line in table]
    assert cells[0] == ["LPIPS", "95 % over clips", "PSNR, person (dB)", "FVD (16 clips)"]
    assert cells[2] == ["0.1234", "[0.1000, 0.1500]", "18.00", "512.3"]
    assert cells[3] == ["0.2500", "[0.2000, 0.3000]", "-", "-"]


def test_results_without_scenes_and_without_a_leak_have_one_table_and_no_footnote():
    text = results_table({"protocol": {}, "rows": [result("prior", 30.0, scene=None)]})
    assert "### Results" in text and "Scene" not in text and "†" not in text


def test_a_row_that_does_not_say_whether_it_sees_its_target_is_refused():
    row = result("prior", 30.0)
    del row["sees_target"]
    with pytest.raises(KeyError, match="sees_target"):
        results_table({"protocol": {}, "rows": [row]})


def test_long_lists_of_a_protocol_are_cut():
    clips = [f"test_{n}" for n in range(256)]
    card = protocol_card({"n_pred": [20] * 256, "clips": clips, "frame_size": [64, 64], "chosen": [1, 2]})
    assert card.splitlines() == [
        "- n_pred: 20 (256 times)",
        "- clips: test_0, test_1, ..., test_255 (256)",
        "- frame_size: 64, 64",
        "- chosen: 1, 2",
    ]
