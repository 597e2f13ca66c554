"""The tables of docs/results say what the committed numbers say."""

import json

import pytest
from helpers import ROOT

RESULTS = ROOT / "docs" / "results"


def table_cells(page, label):
    """The cells of the first table row of a page that begins with a label."""
    lines = (RESULTS / page).read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| {label} "))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("label", "variant", "row"),
    [
        ("SVG-LP, N = 1", "svg_lp", "prior"),
        ("SVG-FP, N = 1", "svg_fp", "prior"),
        ("SVG-LP, best of 10", "svg_lp", "prior_best_of_N"),
        ("SVG-FP, best of 10", "svg_fp", "prior_best_of_N"),
    ],
)
def test_moving_mnist_models(label, variant, row):
    rows = json.loads((RESULTS / "study_mmnist" / "results.json").read_text())["rows"]
    metrics = next(found["metrics"] for found in rows if found["variant"] == variant)
    columns = zip(("psnr", "ssim", "lpips", "fvd_64"), (2, 3, 4, 0), strict=True)
    for cell, (metric, digits) in zip(table_cells("mmnist.md", label), columns, strict=True):
        entry = metrics[metric][row]
        assert cell.split(" ")[0] == ("-" if entry is None else f"{entry['mean']:.{digits}f}")


@pytest.mark.parametrize(
    ("label", "row"),
    [
        ("mean training frame", "mean_frame"),
        ("last given frame", "copy_first"),
        ("N = 1", "prior"),
        ("best of 100", "prior_best_of_N"),
    ],
)
def test_moving_mnist_baselines_and_best_of_100(label, row):
    folder = RESULTS / "study_mmnist"
    if row.startswith("prior"):
        rows = json.loads((folder / "best_of_100.json").read_text())["rows"]
        values = next(found for found in rows if found["name"] == row)
    else:
        values = json.loads((folder / "results.json").read_text())["baselines"][row]
    cells = table_cells("mmnist.md", label)
    for cell, metric, digits in zip(cells, ("psnr", "ssim", "lpips"), (2, 3, 4), strict=False):
        number, *interval = cell.split(" ", 1)
        assert number == f"{values[metric]:.{digits}f}"
        if interval:
            low, high = values[f"{metric}_ci95"]
            assert interval == [f"[{low:.{digits}f}, {high:.{digits}f}]"]
