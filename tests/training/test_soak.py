"""Thousands of steps of the quickstart: memory, open files and the time of a step stay what they were."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

STEPS = int(os.environ.get("CVAE_SOAK_STEPS", "2000"))  # at most those of the config, 24 epochs of 199
WARM_UP = 2  # epochs; the first one's validation and checkpoint load programs and start threads
MB = 2**20
# MB per 1000 steps. An epoch's validation and checkpoint add a few MB, ever less; a batch that is kept at
# every step would add 200.
MOST = 40


@pytest.mark.slow
def test_a_long_run_stays_as_it_is(tmp_path, environment):
    program = [sys.executable, str(ROOT / "tests" / "soak.py"), str(tmp_path), str(STEPS)]
    subprocess.run(program, check=True, cwd=ROOT, env=environment, capture_output=True)
    found = json.loads((tmp_path / "samples.json").read_text())
    assert len(found["seconds"]) == STEPS, "the run was shorter than CVAE_SOAK_STEPS"
    warm_up = WARM_UP * found["batches"]
    series = {name: np.array([s[name] for s in found["samples"]], float) for name in found["samples"][0]}
    series = {name: values[series["step"] > warm_up] for name, values in series.items()}
    assert len(series["step"]) >= 8, f"give CVAE_SOAK_STEPS at least {warm_up + 500}"
    slope = np.polyfit(series["step"], series["memory"], 1)[0] * 1000 / MB
    first, *_, last = np.array_split(found["seconds"][warm_up:], 4)
    slower = np.median(last) / np.median(first)
    report = (
        f"{STEPS} steps: {np.median(last):.3f} s a step in the last quarter, {slower:.2f} times that of the "
        f"first; {series['memory'].max() / MB:.0f} MB at most, {slope:+.1f} MB per 1000 steps"
    )
    print(report)
    assert slope < MOST, report
    assert slower < 1.5, report
    for name in ("files", "threads", "arrays"):  # medians: a checkpoint is written in the background
        early, late = map(np.median, np.array_split(series[name], 2))
        assert late <= early, (name, series[name])
