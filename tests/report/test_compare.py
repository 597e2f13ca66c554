"""Runs in one table, and the refusal of mixed protocols."""

import json
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


def test_runs_of_one_protocol_are_tabulated(tmp_path, capsys):
    runs = [
        scored(tmp_path / "one", 20.0),
        scored(tmp_path / "two", 22.5, epochs_trained=9, commit="c2-dirty", model="another"),
    ]
    assert main([*runs, f"--out={tmp_path / 'table.md'}"]) == 0
    told = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == told
    header, _, one, two = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines()
    )
    assert header[:3] == ["run", "checkpoint", "epochs"]
    assert header[3:] == ["prior (dB)", "prior_best_of_10 (dB)", "posterior † (dB)"]
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
