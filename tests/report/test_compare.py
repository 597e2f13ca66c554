"""Runs in one table, and the refusal of mixed protocols."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvae_jax.report.compare import main

ROOT = Path(__file__).parent.parent.parent


def scored(workdir, psnr, folder="eval", **protocol):
    card = {
        "split": "validation",
        "samples": 3,
        "data_blake2b": "ab",
        "checkpoint": "last",
        "epochs_trained": 5,
        "commit": "c1",
    }
    row = {"psnr_ci95": [psnr - 1, psnr + 1], "sees_target": False}
    rows = [
        row | {"name": "prior", "psnr": psnr},
        row | {"name": "prior_best_of_N", "n": 10, "psnr": psnr + 1, "psnr_ci95": None},
        {"name": "posterior", "psnr": psnr + 2, "psnr_ci95": None, "sees_target": True},
        row | {"name": "prior", "psnr": 0.0, "scene": "a"},
    ]
    (workdir / folder).mkdir(parents=True)
    (workdir / folder / "results.json").write_text(json.dumps({"protocol": card | protocol, "rows": rows}))
    return str(workdir)


def cells(table):
    """The cells of a Markdown table but for its rule."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def add(run, folder="eval", **fields):
    """Add fields to the row prior of a run's results, and to its protocol."""
    path = Path(run) / folder / "results.json"
    results = json.loads(path.read_text())
    results["rows"][0] |= {name: value for name, value in fields.items() if name != "protocol"}
    results["protocol"] |= fields.get("protocol", {})
    path.write_text(json.dumps(results))


def test_every_metric_has_a_table_and_runs_without_it_a_gap(tmp_path, capsys):
    runs = [scored(tmp_path / name, 20.0) for name in ("one", "two")]
    add(runs[0], lpips=0.25, lpips_ci95=[0.2, 0.3], fvd_16=300.0, protocol={"lpips": "AlexNet", "fvd": "I3D"})
    add(runs[1], protocol={"lpips": "not measured: it is not installed"})
    assert main(runs) == 0
    told = capsys.readouterr().out
    titles = [line for line in told.splitlines() if line.startswith("#")]
    assert titles == ["### PSNR (dB)", "### LPIPS", "### FVD (16 clips)"]
    assert "Lower is better for LPIPS and FVD (16 clips), higher for the others." in told
    lpips, distance = (cells(told.split(title)[1].split("###")[0]) for title in titles[1:3])
    assert [row[3:] for row in lpips] == [["prior"], ["0.2500 [0.2000, 0.3000]"], ["-"]]
    assert distance[1][3:] == ["300.0"]
    path = Path(runs[0]) / "eval" / "results.json"
    carried = {
        "kl_nats_per_frame": 2.5,
        "active_units": 3,
        "psnr_gap": 0.5,
        "correlation": 0.961,
        "diversity": 41.26,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latents": carried}))
    assert main(runs) == 0
    table = cells(capsys.readouterr().out.split("### Latents")[1])
    assert [row[1:] for row in table[1:]] == [["2.5", "3", "+0.500", "0.96", "41.3"], ["-"] * 5]
    add(runs[1], lpips=0.3, protocol={"lpips": "VGG16"})
    assert main(runs) == 2
    assert "lpips is 'AlexNet' and 'VGG16'" in capsys.readouterr().err


def test_how_a_run_draws_samples_is_its_own_and_earlier_results_do_not_say_it(tmp_path, capsys):
    fields = ({}, {"noise_correlation": 0.0}, {"noise_correlation": 0.95})
    runs = [scored(tmp_path / str(number), 20.0, **more) for number, more in enumerate(fields)]
    assert main(runs) == 0, capsys.readouterr().err


def test_runs_scored_on_different_splits_are_refused(tmp_path, capsys):
    runs = [scored(tmp_path / split, 20.0, split=split) for split in ("validation", "test")]
    assert main(runs) == 2
    assert "split is 'validation' and 'test'" in capsys.readouterr().err


def test_a_split_is_found_wherever_it_was_written(tmp_path, capsys):
    run = scored(tmp_path / "one", 20.0, split="test")
    scored(tmp_path / "one", 25.0, folder="eval_validation")
    for flags, psnr in (([], "20.00"), (["--split=test"], "20.00"), (["--split=validation"], "25.00")):
        assert main([run, *flags]) == 0
        assert cells(capsys.readouterr().out)[1][3].startswith(psnr)
    # Results that an older version wrote elsewhere: the newer ones are taken.
    scored(tmp_path / "one", 30.0, folder="eval_test", split="test")
    for newer, psnr in (("eval", "20.00"), ("eval_test", "30.00")):
        for folder in ("eval", "eval_test"):
            seconds = 2_000_000_000 + (folder == newer)
            os.utime(tmp_path / "one" / folder / "results.json", (seconds, seconds))
        assert main([run, "--split=test"]) == 0
        assert cells(capsys.readouterr().out)[1][3].startswith(psnr)


def test_runs_of_one_protocol_are_tabulated(tmp_path, capsys):
    runs = [
        scored(tmp_path / "one", 20.0),
        scored(tmp_path / "two", 22.5, epochs_trained=9, commit="c2-dirty", model="another"),
    ]
    assert main([*runs, f"--out={tmp_path / 'table.md'}"]) == 0
    told = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == told
    assert told.startswith("### PSNR (dB)\n\n") and told.count("###") == 1
    header, one, two = cells(told)
    assert header[:3] == ["run", "checkpoint", "epochs"]
    assert header[3:] == ["prior", "prior_best_of_10", "posterior †"]
    assert one == [runs[0], "last", "5", "20.00 [19.00, 21.00]", "21.00", "22.00"]
    assert two[:4] == [runs[1], "last", "9", "22.50 [21.50, 23.50]"]


@pytest.mark.parametrize(
    "field, value, told",
    [("samples", 1, "samples is 3 and 1"), ("data_blake2b", "cd", "data_blake2b is 'ab' and 'cd'")],
)
def test_mixed_protocols_are_refused_naming_the_difference(tmp_path, capsys, field, value, told):
    runs = [scored(tmp_path / "one", 20.0), scored(tmp_path / "two", 22.5, **{field: value})]
    table = tmp_path / "table.md"
    assert main([*runs, f"--out={table}"]) == 2
    captured = capsys.readouterr()
    assert told in captured.err and captured.out == "" and not table.exists()


def test_a_checkpoint_chosen_on_the_clips_does_not_stand_beside_one_that_is_not(tmp_path, capsys):
    for folder, split, status in (("eval", "validation", 2), ("eval_test", "test", 0)):
        runs = [
            scored(tmp_path / split / checkpoint, 20.0, folder, split=split, checkpoint=checkpoint)
            for checkpoint in ("best", "last")
        ]
        assert main([*runs, f"--split={split}"]) == status
        assert ("best on the very clips" in capsys.readouterr().err) == (status == 2)


def test_results_that_are_not_there_are_told(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "run python evaluate.py" in capsys.readouterr().err
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "results.json").write_text("{")
    assert main([str(tmp_path)]) == 2
    assert "is not whole" in capsys.readouterr().err
    test = scored(tmp_path / "w", 20.0, folder="eval_test")
    assert main([test, "--split=test"]) == 0


def test_as_a_command_it_starts_neither_jax_nor_tensorflow(tmp_path):
    runs = [scored(tmp_path / "one", 20.0), scored(tmp_path / "two", 22.5, samples=1)]
    program = (
        "import sys; from cvae_jax.report.compare import main; status = main(sys.argv[1:]); "
        "assert not {'jax', 'tensorflow'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *runs], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "different protocols" in done.stderr
