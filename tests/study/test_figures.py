"""The figures of a study."""

import numpy as np
import pytest

from cvae_jax.study import figures


def history(epochs, kl):
    """Rows of a run that was validated in every second epoch."""
    return [
        {
            "epoch": epoch,
            "trained": 100 * (epoch + 1) / epochs,
            "val_kl_nats_per_frame": kl if epoch % 2 else None,
            "val_active_units_share": 0.5 if epoch % 2 else None,
            "val_psnr_gap": 0.1 if epoch % 2 else None,
        }
        for epoch in range(epochs)
    ]


@pytest.mark.parametrize(
    ("other", "label", "places"),
    [(4, "epoch", [2, 4]), (8, "percentage of the run's epochs", [50, 100])],
)
def test_latents_of_runs_of_different_lengths_share_an_axis(monkeypatch, tmp_path, other, label, places):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda path, figure: drawn.append(figure))
    course = {"one": [history(4, 0.3)], "other": [history(other, 20.0)]}
    figures.save_latents(tmp_path / "6.png", course, percentages=other != 4)
    panels = drawn[0].axes
    assert {axes.get_xlabel() for axes in panels} == {label}
    one, another = panels[0].get_lines()
    np.testing.assert_allclose(one.get_xdata(), places)
    assert len(another.get_xdata()) == other // 2 and another.get_xdata()[-1] == places[-1]


@pytest.mark.parametrize(
    ("kl", "ticks"), [(0.03, ["0.000", "0.025"]), (0.9, ["0", "0.1", "0.5"]), (20.0, ["0", "1", "10"])]
)
def test_the_kl_has_readable_ticks(monkeypatch, tmp_path, kl, ticks):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda path, figure: drawn.append(figure))
    figures.save_latents(tmp_path / "6.png", {"one": [history(4, kl)], "other": [history(4, kl / 2)]})
    drawn[0].draw_without_rendering()
    shown = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]
    assert set(ticks) <= set(shown)


def test_differences_show_seeds_their_mean_and_its_interval(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda path, figure: drawn.append(figure))

    def row(name, psnr, lpips=None):
        entries = {"psnr": psnr, "lpips": lpips}
        return {"variant": name, "metrics": {key: {"difference": e} for key, e in entries.items()}}

    three = {"mean": 0.5, "ci95": [0.1, 0.9], "by_seed": [0.4, 0.5, 0.6]}
    one = {"mean": -1.0, "ci95": None, "by_seed": [-1.0]}
    rows = [row("base", None), row("three", three, lpips=one), row("one", one)]
    figures.save_differences(tmp_path / "8.png", rows, "base")
    psnr, lpips = drawn[0].axes  # SSIM was not measured
    assert [text.get_text() for text in psnr.get_yticklabels()] == ["three", "one"]
    assert {axes.get_xlabel() for axes in (psnr, lpips)} == {"minus base"}
    zero, *lines = ([float(x) for x in np.ravel(line.get_xdata())] for line in psnr.get_lines())
    assert zero == [0, 0] and lines == [[0.4, 0.5, 0.6], [0.5], [0.1, 0.9], [-1.0], [-1.0]]
    assert len(lpips.get_lines()) == 3
    drawn[0].draw_without_rendering()
    ticks = [text.get_text() for text in psnr.get_xticklabels()]
    assert len(ticks) >= 3
