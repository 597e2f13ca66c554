"""Lab checkpoints as workdirs: what is mapped, what is refused, and that evaluate.py takes the result."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from helpers import restored

from cvae_jax import import_torch
from cvae_jax.import_torch import import_checkpoint
from cvae_jax.models import svg_torch
from cvae_jax.models.cvae_torch import dimensions, to_variables
from cvae_jax.runtime.errors import UserError

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "parity_small.npz"


@pytest.fixture
def state_dict():
    with np.load(FIXTURE) as data:
        return {name[3:]: data[name] for name in data.files if name.startswith("sd/")}


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def as_if_read(monkeypatch, tmp_path):
    """Let `import_checkpoint` read a dict as if PyTorch had loaded it from a file."""

    def give(state_dict):
        monkeypatch.setattr(import_torch, "load_state_dict", lambda path: state_dict)
        return tmp_path / "lab.ckpt"

    return give


def test_the_workdir_holds_the_weights_and_their_dimensions(state_dict, as_if_read, tmp_path):
    workdir = tmp_path / "W"
    count, _ = import_checkpoint(as_if_read(state_dict), workdir)
    trained = {n: v for n, v in state_dict.items() if "running" not in n and "tracked" not in n}
    assert count == sum(value.size for value in trained.values())
    config, state = restored(workdir)
    assert {name: config.model.cvae[name] for name in dimensions(state_dict)} == dimensions(state_dict)
    assert (config.name, config.model.cvae.output, config.beta.kind) == ("lab", "rgb", "monotonic")
    expected = to_variables(state_dict)
    same(state.params, expected["params"])
    same(state.batch_stats, expected["batch_stats"])
    kernel = state.params["frame_encoder"]["layer_6"]["kernel"]  # (O, I, h, w) -> (h, w, I, O)
    np.testing.assert_array_equal(kernel[0, 1], state_dict["frame_transformation.6.weight"][:, :, 0, 1].T)
    with pytest.raises(UserError, match=f"There is a run in {workdir} already"):
        import_checkpoint(as_if_read(state_dict), workdir)


def test_names_of_a_data_parallel_checkpoint_are_the_same(state_dict):
    same(to_variables({f"module.{n}": v for n, v in state_dict.items()}), to_variables(state_dict))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d | {"resnet.0.weight": np.zeros(1)}, "entry 'resnet.0.weight' is not of the"),
        (lambda d: d | {"Generator.0.gate.weight": np.zeros(1)}, "Generator.0.gate.weight"),
        (
            lambda d: {n: v for n, v in d.items() if n != "Decoder_Fusion.5.weight"},
            "has no 'Decoder_Fusion.5.weight'",
        ),
        (
            lambda d: {n: v for n, v in d.items() if n != "Generator.7.bias"},
            r"generator.layer_7.bias has shape none, expected \(3,\) \(1 entries differ\)",
        ),
        (
            lambda d: d | {"Generator.7.bias": np.zeros(4)},
            r"generator.layer_7.bias has shape \(4,\), expected \(3,\)",
        ),
    ],
    ids=["another model", "another layer", "no dimensions", "entry missing", "another shape"],
)
def test_what_is_not_the_model_is_refused_and_nothing_written(
    state_dict, as_if_read, tmp_path, change, sentence
):
    with pytest.raises(UserError, match=sentence):
        import_checkpoint(as_if_read(change(state_dict)), tmp_path / "W")
    assert not (tmp_path / "W").exists()


def command(*arguments, block_torch=False):
    start = "import sys, runpy; sys.modules['torch'] = None; " if block_torch else "import runpy; "
    start += "runpy.run_module('cvae_jax.import_torch', run_name='__main__', alter_sys=True)"
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def one_sentence(done):
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_mistakes_on_the_command_line(tmp_path):
    workdir = f"--workdir={tmp_path / 'W'}"
    missing = one_sentence(command(tmp_path / "no.ckpt", workdir))
    assert "There is no checkpoint at" in missing
    (tmp_path / "lab.ckpt").write_bytes(b"not a checkpoint")
    without = one_sentence(command(tmp_path / "lab.ckpt", workdir, block_torch=True))
    assert "needs PyTorch: pip install -r requirements-dev.txt" in without
    assert not (tmp_path / "W").exists()


def test_files_that_pytorch_cannot_read(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "lab.ckpt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read as a PyTorch checkpoint"):
        import_torch.load_state_dict(path)
    torch.save({"state_dict": {"x": Path("code is needed to build this")}}, path)
    with pytest.raises(UserError, match="cannot be read as a PyTorch checkpoint"):
        import_torch.load_state_dict(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(UserError, match="holds no 'state_dict'"):
        import_torch.load_state_dict(path)


class FakeTorch(ModuleType):
    """PyTorch of a version, whose `load` notes how it was called."""

    class Tensor:
        pass

    def __init__(self, version):
        super().__init__("torch")
        self.__version__, self.calls = version, []

    def load(self, path, **options):
        self.calls.append(options)
        return {"state_dict": {}}


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu124", "2.0.0a0", "unknown"])
def test_a_version_that_may_run_code_of_the_file_never_reads_it(monkeypatch, tmp_path, version):
    (tmp_path / "lab.ckpt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", torch := FakeTorch(version))
    with pytest.raises(UserError, match=f"PyTorch {re.escape(version)} can run code .*'torch>=2.6'"):
        import_checkpoint(tmp_path / "lab.ckpt", tmp_path / "W")
    assert not torch.calls and not (tmp_path / "W").exists()


@pytest.mark.parametrize("version", ["2.6.0", "2.10.0+cpu", "3.0"])
def test_a_safe_version_reads_tensors_only(monkeypatch, tmp_path, version):
    (tmp_path / "lab.ckpt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", torch := FakeTorch(version))
    assert import_torch.load_state_dict(tmp_path / "lab.ckpt") == {}
    assert [options["weights_only"] for options in torch.calls] == [True]


@pytest.fixture
def svg_state_dict():
    with np.load(ROOT / "tests" / "fixtures" / "svg_lp_dcgan_small.npz") as data:
        return {name[3:]: data[name] for name in data.files if name.startswith("sd/")}


def test_the_state_dicts_of_svg(svg_state_dict, tmp_path):
    """As a dict of state dicts, one for each network, or as one under 'state_dict'."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value) for name, value in svg_state_dict.items()}
    nested: dict = {"opt": {"beta": 1e-4}}
    for name, value in tensors.items():
        module, _, rest = name.partition(".")
        nested.setdefault(module, {})[rest] = value
    expected = svg_torch.to_variables(svg_state_dict)
    for number, checkpoint in enumerate((nested, {"state_dict": tensors})):
        path, workdir = tmp_path / f"{number}.pt", tmp_path / f"W{number}"
        torch.save(checkpoint, path)
        import_checkpoint(path, workdir, n_past=3)
        config, state = restored(workdir, size=(64, 64), label_size=0)
        assert (config.model.kind, config.n_past, config.model.svg.skip) == ("svg", 3, "original")
        assert config.model.svg.backbone == "dcgan" and config.model.svg.width == 4
        same(state.params, expected["params"])
        same(state.batch_stats, expected["batch_stats"])


def test_whole_modules_are_refused_with_how_to_convert_them(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save({"encoder": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(UserError, match=r"whole Python objects: .*save state dicts, torch.save\("):
        import_torch.load_state_dict(path)


def test_svg_checkpoints_that_are_not_whole(svg_state_dict, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "half.pt"
    torch.save({"encoder": {"c1.main.0.weight": torch.zeros(4, 1, 4, 4)}, "decoder": None}, path)
    with pytest.raises(UserError, match="holds no 'state_dict'; a lab checkpoint is .*posterior, prior"):
        import_torch.load_state_dict(path)
    torch.save({"encoder": {"c1.main.0.weight": torch.zeros(4, 1, 4, 4)}}, path)
    with pytest.raises(UserError, match="has no '[a-z_.0-9]+'; it is not of SVG"):
        import_checkpoint(path, tmp_path / "W")


@pytest.mark.parametrize(("latents", "n_past", "beta"), [(24, 10, 1e-6), (3, 5, 1e-4)])
def test_the_size_of_z_tells_the_published_training(svg_state_dict, latents, n_past, beta):
    other = svg_state_dict | {"posterior.mu_net.weight": np.zeros((latents, 8))}
    changes = svg_torch.FORMAT.changes(other)
    assert (changes["n_past"], changes["beta.scale"]) == (n_past, beta)
    assert (changes["teacher_forcing.initial"], changes["optimizer.clip_norm"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    "name", ["encoder.c1.other.weight", "encoder.upc2.main.0.weight", "prior.gru.weight"]
)
def test_names_that_are_not_of_svg(svg_state_dict, name):
    with pytest.raises(UserError, match=f"entry '{name}' is not of SVG"):
        svg_torch.to_variables(svg_state_dict | {name: np.zeros(1)})


def test_from_a_saved_checkpoint_to_the_table(state_dict, tmp_path):
    torch = pytest.importorskip("torch")
    path, workdir = tmp_path / "lab.ckpt", tmp_path / "W"
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in state_dict.items()}
    torch.save({"state_dict": tensors, "optimizer": {"step": 3}, "last_epoch": 7}, path)
    done = command(path, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert f"now run: python evaluate.py --workdir={workdir}" in done.stdout
    same(restored(workdir)[1].params, to_variables(state_dict)["params"])
    scored = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), f"--workdir={workdir}", "--config.eval.samples=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert scored.returncode == 0, scored.stderr[-2000:]
    table = (workdir / "eval" / "table.md").read_text()
    assert "star_jump" in table and "| prior " in table
