"""The PyTorch reference against the parity fixture, and the comparison's own arithmetic."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "parity_small.npz"


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("torch", reason="the reference needs requirements-dev.txt")
    from benchmarks import reference

    return reference


@pytest.mark.parametrize("case", ["train_tf", "train_ar"])
def test_the_reference_trains_as_the_fixture_says(reference, case):
    model, data = reference.from_fixture(FIXTURE)
    model.train()
    loss, frames = reference.clip_loss(
        model,
        data["in/frames"],
        data["in/labels"],
        lambda t: data["in/eps"][:, t - 1],
        float(data["in/beta"]),
        case == "train_tf",
    )
    loss.backward()
    np.testing.assert_allclose(loss.item(), data[f"{case}/loss"], rtol=1e-5)
    predicted = np.stack([frame.detach() for frame in frames], 1)
    np.testing.assert_allclose(predicted, data[f"{case}/frames"], atol=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == {k.split("/")[-1] for k in data if k.startswith(f"{case}/grad/")}
    whole = np.sqrt(sum(np.sum(np.square(g.numpy())) for g in gradients.values()))
    for name, gradient in gradients.items():
        expected = data[f"{case}/grad/{name}"].numpy()
        difference = np.linalg.norm(gradient.numpy() - expected)
        assert difference <= 1e-3 * np.linalg.norm(expected) + 1e-6 * whole, name


def test_the_reference_rolls_out_as_the_fixture_says(reference):
    model, data = reference.from_fixture(FIXTURE)
    model.eval()
    frames = reference.prior_rollout(
        model, data["in/frames"][:, 0], data["in/labels"], lambda t: data["in/eps"][:, t - 1]
    )
    np.testing.assert_allclose(frames, data["eval/prior_rollout"], atol=1e-5)


def test_a_ratio_is_the_median_over_pairs_of_turns(monkeypatch):
    from tqdm import tqdm

    from benchmarks import run

    class Told:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, iter(seconds)

        def ask(self, **request):
            return {"seconds": next(self.seconds)}

    monkeypatch.setattr(run, "PAUSE_SECONDS", 0)
    sides = [Told("ours", [1.0, 2.0, 4.0]), Told("torch", [3.0, 4.0, 4.0])]
    with tqdm(disable=True) as bar:
        found = run.compare(run.CASES[0], sides, 3, bar)
    assert (found["ours_s"], found["torch_s"], found["ratio"]) == (2.0, 4.0, 2.0)
    assert found["ratio_middle_half"] == [1.5, 2.5]
    assert "| 2 | 4 | 2.00 | 1.50 - 2.50 | 3 |" in run.table({run.CASES[0].name: found})


def with_ratios(low, high):
    return {"ratio": (low + high) / 2, "ratio_middle_half": [low, high]}


def test_what_became_slower_is_told_on_the_same_kind_of_machine():
    from benchmarks import regressions

    here = {"cpu": "one", "vectors": "avx2", "threads": 2, "packages": {"torch": "1"}}
    committed = {"train_tf_b2": with_ratios(1.2, 1.4), "rollout_b1": with_ratios(1.5, 1.7), "_gemm": {}}
    committed["_machine"] = here | {"date": "2026-01-01"}
    slower = {"train_tf_b2": with_ratios(1.0, 1.1), "rollout_b1": with_ratios(1.4, 1.6)}
    (sentence,) = regressions.compare(slower, here, committed)
    assert sentence.startswith(
        "SLOWER: training step, teacher-forced, batch 2 is 1.05 times as fast as PyTorch"
    )
    assert "and was 1.30 (1.20 - 1.40) in benchmarks.json of 2026-01-01." in sentence
    faster = {"train_tf_b2": with_ratios(1.5, 1.6), "train_ar_b2": with_ratios(1.0, 1.1)}
    sentences = regressions.compare(faster, here, committed)
    assert [s.split()[0] for s in sentences] == ["faster:", "Not"] and "autoregressive" in sentences[1]
    same = {"rollout_b1": with_ratios(1.65, 1.9)}
    assert regressions.compare(same, here, committed)[0].startswith("As fast as in benchmarks.json")
    (sentence,) = regressions.compare(slower, here | {"packages": {"torch": "2"}}, committed)
    assert sentence == "Not compared with benchmarks.json, which was measured with PyTorch 1."
    (sentence,) = regressions.compare(slower, here | {"threads": 4}, committed)
    assert sentence.startswith("Not compared") and sentence.endswith("one (avx2) with 2 threads.")


def test_sides_that_differ_are_not_compared():
    from benchmarks import run

    class Told:
        def __init__(self, loss):
            self.loss = loss

        def ask(self, **request):
            return {"train_tf": 1.0, "train_ar": self.loss}

    assert run.check([Told(1.0), Told(1.0)]) == {"train_tf": [1.0, 1.0], "train_ar": [1.0, 1.0]}
    with pytest.raises(SystemExit):
        run.check([Told(1.0), Told(1.001)])
    with pytest.raises(SystemExit):
        run.check([Told(1.0), Told(float("nan"))])


def test_quick_takes_the_cases_of_the_contract_and_the_multiscale_model():
    from benchmarks import run

    assert [case.name for case in run.CASES if case.quick_pairs] == [
        "train_tf_b2",
        "train_ar_b2",
        "rollout_b1",
        "multiscale_train_b16",
        "multiscale_rollout_b1",
    ]


def test_a_folder_that_is_not_there_is_told_before_anything_is_timed(tmp_path, reference):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", f"--json={tmp_path}/no/x.json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "make it first" in done.stderr


def test_loaders_give_the_same_clips_and_their_rates_are_compared(tmp_path, reference):
    """Forty frames, rendered, prepared and read by both sides, in this process."""
    from benchmarks import loader, loader_worker

    folder = loader.render(tmp_path, 40)
    assert loader.render(tmp_path, 40) == folder  # kept
    assert not list(tmp_path.glob(".*"))  # nothing half-written
    assert loader.prepare(folder, tmp_path / "cache").keys() == {"first", "again"}
    ours = loader_worker.Ours(folder, tmp_path / "cache")
    theirs = loader_worker.Torch(folder, tmp_path / "cache")
    assert len(theirs.clips) == ours.loader.num_clips == 2
    found = next(ours.loader.batches(0))
    clips = {tuple(f[0, 0, 0]): (f, ours_label) for f, ours_label in zip(found["frames"], found["labels"])}
    for frames, labels in (theirs.clips[0], theirs.clips[1]):
        pixels = [np.rint(255 * x.permute(0, 2, 3, 1).numpy()).astype(np.uint8) for x in (frames, labels)]
        np.testing.assert_array_equal(pixels, clips[tuple(pixels[0][0, 0, 0])])
    for answer in (ours.epochs(0.01), ours.host(0.01, None), ours.host(0.01, 1), theirs.epochs(0)):
        assert answer["clips"] >= 2 and answer["clips"] % 2 == 0 and answer["seconds"] > 0
    steps = ours.steps(0.5, 5)
    assert 0 < steps["waited"] < steps["fed"] and steps["resident"] > 0


def test_loaders_are_compared_round_by_round():
    from benchmarks import loader

    rates = {"PyTorch, 0 workers": [10, 20, 40], "ours, beside 0 workers": [500, 4000, 400]}
    rates |= {"PyTorch, 2 workers": [10, 10, 10], "ours, beside 2 workers": [100, 200, 300]}
    host = {"plain NumPy": [100, 100, 200], "grain, no thread": [50, 100, 150]}
    steps = {"4.0": [{"fed": 1.1, "resident": 1.0, "waited": 0.011}] * 3}
    report = {"loaders": rates, "host": host, "steps": steps}
    text = loader.tables(report)
    assert "| PyTorch, 0 workers | 20 (10 - 40) | 50 (10 - 200) |" in text
    assert "| PyTorch, 2 workers | 10 (10 - 10) | 20 (10 - 30) |" in text
    assert "| ours, on the device | 350 (100 - 4000) | 1 |" in text
    assert "| grain, no thread | 100 (50 - 150) | 0.75 (0.50 - 1.00) |" in text
    assert "| 4 ms | 1.100 (1.100 - 1.100) | 1.0% (1.0% - 1.0%) |" in text


def test_the_page_names_the_cases_that_did_not_fit_into_memory():
    from benchmarks.cases import CASES
    from benchmarks.document import document

    numbers = {"ours_s": 1.0, "torch_s": 2.0, "ratio": 2.0, "ratio_middle_half": [1.9, 2.1], "pairs": 3}
    known = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    known = {name: value for name, value in known.items() if name.startswith("_")}
    assert "did not fit" not in document(known | {case.name: numbers for case in CASES})
    page = document(known | {case.name: numbers for case in CASES if "b10" not in case.name})
    assert (
        "memory for: training step, teacher-forced, batch 10, training step, autoregressive, batch 10."
        in page
    )
    assert "| training step, teacher-forced, batch 2 | 1 | 2 | 2.00 | 1.90 - 2.10 | 3 |" in page


def test_each_benchmark_keeps_the_others_part_of_the_document():
    from benchmarks.pages import sections_of_others, with_section

    loader, accelerator = "## Loader\n\nnew\n", "## Accelerator\n\nfast\n"
    own = "# Benchmarks\n\nold\n\n## Speed\n\nold\n"
    whole = with_section(f"{own}\n## Loader\n\nold\n\n{accelerator}", loader)
    assert whole == f"{own}\n{loader}\n{accelerator}"
    assert with_section(with_section(own, loader), accelerator) == whole
    assert sections_of_others(own) == []
    text = "# Benchmarks\n\nnew\n"
    for section in sections_of_others(whole):
        text = with_section(text, section)
    assert text == f"# Benchmarks\n\nnew\n\n{loader}\n{accelerator}"


@pytest.mark.slow
def test_steps_are_timed_on_whatever_device_there_is(tmp_path):
    """Small models; the committed section is that of the committed numbers."""
    file = tmp_path / "accelerator.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--tiny", f"--json={file}"]
    done = subprocess.run(command, check=True, timeout=600, capture_output=True, text=True)
    found = json.loads(file.read_text())
    from benchmarks import accelerator
    from benchmarks.accelerator_cases import one_of_each

    assert [row["title"] for row in found["cases"]] == [case.title for case in one_of_each()]
    assert {row["recipe"] for row in found["cases"]} == {"report", "recommended", "svg_lp_mmnist"}
    for row in found["cases"]:
        assert min(row["ms"]) > 0 and row["frames_per_second"] > 0 and row["tflop"] > 0
    assert found["left_out"] == [] and all(rate > 0 for rate in found["ceilings"].values())
    has_torch = importlib.util.find_spec("torch") is not None
    assert len(found["torch"]) == has_torch and len(found["failed"]) == (not has_torch)
    assert [row["seconds"] > 0 for row in found["rollouts"]] == [True, True]
    assert sum(row["share"] for row in found["profile"]) == pytest.approx(0.75, abs=0.2501)
    assert found["training"]["val_psnr_prior"] > 5
    assert accelerator.section(found) in done.stdout
    committed = json.loads((ROOT / "docs" / "benchmarks_accelerator.json").read_text())
    assert accelerator.section(committed) in (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.mark.slow
def test_quick_writes_its_numbers(tmp_path, reference):
    from benchmarks import run

    file = tmp_path / "quick.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", f"--json={file}"]
    subprocess.run(command, check=True, timeout=600)
    found = json.loads(file.read_text())
    assert found.keys() == {case.name for case in run.CASES if case.quick_pairs}
    for case in found.values():
        assert min(case["ours_s"], case["torch_s"], case["ratio"]) > 0


def test_shares_of_a_products_rate():
    from benchmarks import run

    shares = run.gemm_share({"train_tf_b2": {"ours_s": 5.0}, "rollout_b1": {"ours_s": 0.7}}, [100.0, 200.0])
    assert shares.keys() == {"train_tf_b2", "rollout_b1"} and all(0 < s < 2 for s in shares.values())


@pytest.mark.parametrize("patch", [1, 2])
def test_the_multiscale_reference_computes_what_our_model_does(patch):
    torch = pytest.importorskip("torch", reason="the reference needs requirements-dev.txt")
    import jax.numpy as jnp

    from benchmarks import reference_multiscale
    from cvae_jax.losses import Objective
    from cvae_jax.models.interface import StepInputs, init_variables
    from cvae_jax.models.multiscale import Multiscale

    ours = Multiscale(widths=(8, 12, 16), patch=patch)
    variables = init_variables(ours, 0, (16, 24))
    theirs = reference_multiscale.Multiscale((8, 12, 16), patch=patch)
    reference_multiscale.load(theirs, variables["params"])
    rng = np.random.default_rng(0)
    frame, own_label, label, target = (rng.random((2, 16, 24, 3)).astype(np.float32) for _ in range(4))
    noise = rng.normal(size=(2, *ours.latent_shape((16, 24)))).astype(np.float32)
    constants, carry = ours.begin(
        variables, jnp.asarray(frame[:, None]), jnp.asarray(own_label[:, None]), False
    )
    x = StepInputs(
        t=jnp.int32(1),
        previous=jnp.asarray(frame),
        previous_is_true=jnp.bool_(True),
        previous_is_given=jnp.bool_(True),
        label=jnp.asarray(label),
        conditioning=jnp.asarray(label),
        noise=jnp.asarray(noise),
        mask=jnp.ones(2),
        target=jnp.asarray(target),
    )
    outputs, *_ = ours.observe(variables, constants, carry, x, False)
    chw = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2)  # noqa: E731
    with torch.no_grad():
        context = theirs.context(chw(frame), chw(own_label))
        found, kl = theirs(context, chw(frame), chw(label), chw(noise), chw(target))
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), outputs.raw, atol=1e-5)
    expected = Objective().kl_divergence(outputs.posterior, outputs.prior, False)
    np.testing.assert_allclose(kl, expected, rtol=1e-4)


def test_a_profile_counts_the_operations_of_the_device():
    from benchmarks.accelerator_cases import summary

    host, device = 1, 2
    event = lambda pid, name, dur: {"ph": "X", "pid": pid, "dur": dur, "args": {"hlo_op": name}}  # noqa: E731
    events = [
        {"name": "process_name", "pid": host, "args": {"name": "/host:CPU"}},
        {"name": "process_name", "pid": device, "args": {"name": "/device:GPU:0"}},
        event(host, "dot.1", 9000.0),
        event(device, "fusion.12", 2000.0),
        event(device, "fusion.3", 1000.0),
        event(device, "while.1", 4000.0),
        event(device, "convolution", 1000.0),
        {"ph": "X", "pid": device, "dur": 50.0},
    ]
    found = summary(events, most=1)
    assert found == [{"name": "fusion", "milliseconds": 3.0, "share": 0.75}]


def test_what_fails_and_what_the_time_does_not_suffice_for_are_named(monkeypatch):
    from benchmarks import accelerator, accelerator_cases

    class Exhausted:
        def __init__(self, *arguments):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nwhile allocating")

    monkeypatch.setattr(accelerator_cases, "TrainingStep", Exhausted)
    monkeypatch.setattr(accelerator_cases, "torch_steps", lambda seconds, tiny: [{"title": "PyTorch"}])
    report = {name: [] for name in ("cases", "torch", "rollouts", "left_out", "failed")}
    saved = []
    accelerator.collect(1.0, True, report, lambda: saved.append(len(report["rollouts"])))
    assert report["cases"] == [] and report["torch"] == [{"title": "PyTorch"}]
    assert (
        "SVG-LP, teacher-forced, 100 x 15, bfloat16 (RESOURCE_EXHAUSTED: out of memory)" in report["failed"]
    )
    assert len(report["rollouts"]) == 2 and saved[-2:] == [1, 2]
    assert report["left_out"] == ["training on dancer"] and report["training"] is None

    report = {name: [] for name in ("cases", "torch", "rollouts", "left_out", "failed")}
    accelerator.collect(1e-9, True, report, lambda: None)
    assert report["rollouts"] == report["failed"] == []
    assert "rollout of 1 clip, report" in report["left_out"] and len(report["left_out"]) > 6
