"""The repository agrees with itself: dependency lists, configs, and what the documents say."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cvae_jax import defaults
from cvae_jax.config import Components
from cvae_jax.data.clips import span
from cvae_jax.data.datasets.real_clips import STRETCHES

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if "def get_config" in p.read_text())
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = (".py", ".md", ".txt", ".json")


def pins(name: str) -> dict[str, str]:
    """Return {package: version} of a requirements file's own lines, each an exact pin."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        if line and not line.startswith("-"):
            package, version = line.split("==")
            found[canonicalize_name(package.split("[")[0])] = version
    return found


def ranges() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(text) for text in project["dependencies"]]
    return {canonicalize_name(r.name): r for r in requirements}


def flat(config) -> dict:
    """Return {"a.b": value} of a config."""
    return flatten_dict(config.to_dict(), sep=".")


def commands(document: Path) -> list[str]:
    """Return the indented lines of a document that run python, pytest or make."""
    lines = re.findall(r"^    (.*)$", document.read_text(), re.MULTILINE)
    return [line for line in lines if re.match(r"make |python |\S*bin/python |CVAE_\w+=", line)]


def get_config(name: str):
    return importlib.import_module(f"configs.{name}").get_config()


def test_ranges_name_the_pinned_packages_and_admit_their_versions():
    exact, allowed = pins("requirements.txt"), ranges()
    assert exact.keys() == allowed.keys()
    refused = [name for name in exact if not allowed[name].specifier.contains(exact[name])]
    assert not refused


@pytest.mark.parametrize("name", ["", "-test", "-cuda13", "-tpu"])
def test_constraints_pin_every_requirement_to_the_same_version(name):
    constraints, required = pins("constraints.txt"), pins(f"requirements{name}.txt")
    assert {package: constraints.get(package) for package in required} == required


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds(name):
    config = get_config(name)
    config = config.base if "base" in config else config  # a study has the config of its runs
    assert flat(config).keys() == flat(defaults.get_config()).keys()
    Components.build(config)
    if config.data.name == "real_clips":
        longest = max(s.stop - s.start for s in STRETCHES if s.split == "train")
        assert span(config.clip_length, config.data.frame_step) <= longest


@pytest.mark.parametrize("kind", ["none", "monotonic", "cyclical"])
def test_the_reports_configs_are_report_exact(kind):
    values = flat(get_config(kind))
    expected = {
        "num_epochs": 100,
        "batch_size": 10,
        "clip_length": 16,
        "data.stride": None,
        "model.cvae.frame_features": 128,
        "model.cvae.label_features": 32,
        "model.cvae.latent_channels": 12,
        "model.cvae.decoder_features": 192,
        "model.cvae.output": "rgb",
        "loss.reconstruction": "mse",
        "loss.clamp": True,
        "loss.divide_recon_by_batch": True,
        "loss.kl": "sum",
        "loss.logvar_clip": 10.0,
        "rollout.cut_feedback": True,
        "model.cvae.cut_previous_features": True,
        "beta.kind": kind,
        "beta.cycle_length": 10.0,
        "beta.ratio": 0.5,
        "beta.scale": 1.0,
        "beta.floor": 0.0,
        "teacher_forcing.kind": "exponential",
        "teacher_forcing.initial": 0.95,
        "teacher_forcing.decay": 0.95,
        "teacher_forcing.start": 10.0,
        "teacher_forcing.draw": "epoch",
        "learning_rate.peak": 1e-4,
        "learning_rate.end": 1e-6,
        "learning_rate.per": "epoch",
        "learning_rate.warmup_epochs": 0,
        "optimizer.clip_norm": 1.0,
        "optimizer.ema_decay": 0.0,
    }
    assert {field: values[field] for field in expected} == expected


def test_no_text_names_a_folder_of_one_machine():
    folders = [ROOT / name for name in ("cvae_jax", "configs", "docs")]
    texts = [p for folder in folders for p in folder.rglob("*") if p.suffix in TEXT]
    texts += [*ROOT.glob("*.py"), *ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    found = [
        str(path.relative_to(ROOT))
        for path in texts
        if re.search(r"/(work|root)/", path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_what_exists(document):
    text = document.read_text(encoding="utf-8")
    paths = [(document.parent, link) for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text)]
    for command in commands(document):
        paths += [(ROOT, path) for path in re.findall(r"(?:\s|--config=)((?:\w+/)*\w+\.py)\b", command)]
        modules = re.findall(r"-m (cvae_jax[\w.]*)", command)
        paths += [(ROOT, module.replace(".", "/") + ".py") for module in modules]
    missing = {path for folder, path in paths if not (folder / path).exists()}
    assert missing <= {"configs/recurrent.py"}  # docs/models.md has the reader write it


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_fields_and_targets_that_exist(document):
    text = document.read_text(encoding="utf-8")
    fields = flat(defaults.get_config()) | flatten_dict(get_config("study").to_dict(), sep=".")
    overrides = set(re.findall(r"--config\.([\w.]+)=", text)) - {"a.b"}  # a.b stands for any field
    # The document declares these itself; tests/data/test_adding_a_data_set.py checks them.
    overrides = {field for field in overrides if not field.startswith("data.bouncing_ball.")}
    assert overrides <= fields.keys()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [command.split()[1] for command in commands(document) if command.startswith("make ")]
    assert set(named) <= set(targets)
