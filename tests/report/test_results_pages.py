"""The tables of docs/results say what the committed numbers say."""

import itertools
import json

import pytest
from helpers import ROOT

from cvae_jax.study.summary import mean_interval

RESULTS = ROOT / "docs" / "results"


def table_cells(page, label):
    """The cells of the first table row of a page that begins with a label."""
    lines = (RESULTS / page).read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| {label} "))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def interval(entry, digits, sign=""):
    """An entry of a study's results.json as the tables write it."""
    if entry is None:
        return "-"
    mean = f"{entry['mean']:{sign}.{digits}f}"
    if entry["ci95"] is None:
        return mean
    low, high = entry["ci95"]
    return f"{mean} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def study_rows(study):
    """{variant: its row}, and the baselines, of a study's results.json."""
    found = json.loads((RESULTS / study / "results.json").read_text())
    return {row["variant"]: row for row in found["rows"]}, found["baselines"]


MMNIST = {
    "SVG-LP": "svg_lp",
    "SVG-FP": "svg_fp",
    "CVAE, learned prior": "cvae_learned",
    "CVAE, N(0, I)": "cvae_standard",
}
METRICS = {"psnr": 2, "ssim": 3, "lpips": 4}


@pytest.mark.parametrize("label", MMNIST)
@pytest.mark.parametrize(("draws", "row"), [("N = 1", "prior"), ("best of 10", "prior_best_of_N")])
def test_moving_mnist_models(label, draws, row):
    found = study_rows("study_mmnist")[0][MMNIST[label]]
    wanted = [str(len(found["seeds"]))]
    wanted += [interval(found["metrics"][name][row], digits) for name, digits in METRICS.items()]
    wanted.append(interval(found["metrics"]["fvd_64"][row], 0))
    assert table_cells("mmnist.md", f"{label}, {draws}") == wanted


@pytest.mark.parametrize(
    ("label", "baseline"),
    [("mean training frame", "mean_frame"), ("last context frame", "copy_first")],
)
def test_moving_mnist_baselines(label, baseline):
    found = study_rows("study_mmnist")[1][baseline]
    cells = table_cells("mmnist.md", label)[1:4]
    assert cells == [f"{found[name]:.{digits}f}" for name, digits in METRICS.items()]


@pytest.mark.parametrize("variant", ["svg_lp", "svg_fp"])
def test_the_longer_run_on_moving_mnist(variant):
    found = study_rows("study_mmnist_longer")[0][variant]["metrics"]
    wanted = [f"{found[name]['prior']['mean']:.{digits}f}" for name, digits in METRICS.items()]
    assert table_cells("mmnist.md", f"{variant.upper().replace('_', '-')}, 28 epochs") == wanted


@pytest.mark.parametrize(("label", "row"), [("N = 1", "prior"), ("best of 100", "prior_best_of_N")])
def test_best_of_100_on_moving_mnist(label, row):
    rows = json.loads((RESULTS / "study_mmnist_longer" / "best_of_100.json").read_text())["rows"]
    found = next(values for values in rows if values["name"] == row)
    entries = {name: {"mean": found[name], "ci95": found[f"{name}_ci95"]} for name in METRICS}
    wanted = [interval(entries[name], digits) for name, digits in METRICS.items()]
    assert table_cells("mmnist.md", label) == wanted


PRIORS = {
    "CVAE, N(0, I)": "standard",
    "CVAE, learned prior": "learned",
    "CVAE, learned, monotonic": "learned_monotonic",
    "CVAE, learned, cyclical": "learned_cyclical",
    "SVG-LP": "svg_lp",
    "SVG-LP, monotonic": "svg_lp_monotonic",
    "SVG-LP, cyclical": "svg_lp_cyclical",
}


@pytest.mark.parametrize("label", PRIORS)
def test_priors_on_dancer(label):
    row = study_rows("study_priors")[0][PRIORS[label]]
    assert row["seeds"] == [0, 1, 2]
    wanted = [
        interval(row["kl_nats_per_frame"], 2),
        f"{100 * row['active_units_share']['mean']:.0f} %",
        interval(row["gap"], 2, "+"),
        interval(row["diversity"], 1),
    ]
    wanted += [interval(row["metrics"][name]["prior"], digits) for name, digits in METRICS.items()]
    assert table_cells("priors.md", label) == wanted


def table_rows(page, header):
    """{label: cells} of the table of a page whose header begins with `header`."""
    lines = (RESULTS / page).read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {header}"))
    body = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in body)
    return {label.removesuffix(" †"): cells for label, *cells in rows}


def test_the_ablation_of_the_recommended_model():
    rows = study_rows("ablation_multiscale")[0]
    table = table_rows("ablation.md", "    ")
    assert [label.split("`")[1] for label in table] == list(rows)
    for label, cells in table.items():
        row = rows[label.split("`")[1]]
        metrics = row["metrics"]
        wanted = [str(len(row["seeds"])), interval(metrics["psnr"]["prior"], 2)]
        wanted.append(interval(metrics["psnr"]["difference"], 2, "+"))
        wanted += [f"{metrics[name]['prior']['mean']:.{METRICS[name]}f}" for name in ("ssim", "lpips")]
        assert cells == [*wanted, f"{row['gap']['mean']:.2f}", f"{row['kl_nats_per_frame']['mean']:.1f}"]


@pytest.mark.parametrize(("header", "scene"), [("  ", None), ("star jump", "star_jump")])
def test_the_demo(header, scene):
    found = json.loads((RESULTS / "demo" / "results.json").read_text())["rows"]
    of_scene = {row["name"]: row for row in found if row.get("scene") == scene}
    table = table_rows("demo.md", header)
    assert {"prior", "prior_mean", "posterior", "nearest_pose"} <= table.keys()
    digits = {"psnr": 2, "ssim": 3, "psnr_person": 2, "ssim_person": 3}
    for label, cells in table.items():
        row = of_scene["prior_best_of_N" if label.startswith("prior_best") else label]
        assert cells == [f"{row[name]:.{n}f}" for name, n in digits.items()], label


def test_the_dancer():
    found = {
        row["name"]: row for row in json.loads((RESULTS / "dancer" / "results.json").read_text())["rows"]
    }
    table = table_rows("dancer.md", "test")
    assert {"prior", "prior_mean", "posterior", "nearest_pose", "ceiling"} <= table.keys()
    for name, cells in table.items():
        row = found[name]
        way = "-" if row["sees_target"] else f"{100 * row['way_to_ceiling']:.0f} %"
        wanted = [interval({"mean": row["psnr"], "ci95": row["psnr_ci95"]}, 2), way]
        digits = {"ssim": 3, "lpips": 4, "psnr_person": 2, "ssim_person": 3}
        assert cells == wanted + [f"{row[metric]:.{n}f}" for metric, n in digits.items()], name


def test_the_dancer_by_seed():
    found = json.loads((RESULTS / "dancer" / "seeds.json").read_text())
    table = table_rows("dancer.md", "test, by seed")
    assert table.keys() == {"prior", "prior_mean", "posterior"}

    def summary(split, row, metric, digits):
        mean, around = mean_interval([of[split]["rows"][row][metric] for of in found.values()])
        return interval({"mean": mean, "ci95": around}, digits)

    for name, cells in table.items():
        each = ", ".join(f"{of['test']['rows'][name]['psnr']:.2f}" for of in found.values())
        wanted = [summary("test", name, metric, n) for metric, n in METRICS.items()]
        assert cells == [each, *wanted, summary("validation", name, "psnr", 2)]


@pytest.mark.parametrize(("run", "first"), [("demo", "| `make demo` "), ("dancer", "| `train.py --config")])
def test_readme_of_the_recommended_model(run, first):
    rows = json.loads((RESULTS / run / "results.json").read_text())["rows"]
    found = {row["name"]: row for row in rows if "scene" not in row}
    lines = (ROOT / "README.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith(first))
    cells = [cell.strip() for cell in line.strip("|").split("|")][2:]
    names = ("prior", "prior_mean", "nearest_pose", "blend_poses", "ceiling")
    shown = [f"{found[n]['psnr']:.2f} / {found[n]['ssim']:.3f}" if n in found else "-" for n in names]
    assert cells == shown


@pytest.mark.parametrize("study", ["ablation", "ablation_real_clips"])
def test_readme(study):
    rows, baselines = study_rows(study)
    nearest, mean = (f"{baselines[name]['psnr']:.2f}" for name in ("nearest_pose", "mean_frame"))
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| `configs/{study}.py` "))
    for line, variant in zip(lines[start:], ("report_exact", "residual"), strict=False):
        numbers = [cell.strip() for cell in line.strip("|").split("|")][3:]
        assert numbers == [interval(rows[variant]["prior"], 2), nearest, mean]
