"""How the package hangs together: imports point one way, modules stay small, models stay closed."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from helpers import ROOT

from cvae_jax.models import KINDS

PACKAGE = ROOT / "cvae_jax"
# From the bottom up: a module imports modules of its own package and of those before it, nothing else.
LAYERS = (
    "runtime",
    "sections",
    "data",
    "models",
    "metrics schedules",
    "perceptual",
    "losses",
    "rollout",
    "report",
    "training",
    "defaults options",
    "config",
    "config_flag",
    "evaluation",
    "prepare",
    "train",
    "planning",
    "generation",
    "run",
    "puppet",
    "study",
    "import_torch",
    "scripts plan",
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
MOST_LINES = 300
# What the modules of models call their parts, and the fields of their sections.
PARTS_OF_A_MODEL = {
    "encode_frame",
    "encode_label",
    "frame_encoder",
    "label_encoder",
    "vector_encoder",
    "gaussian_predictor",
    "decoder_fusion",
    "generator",
    "network",
} | {field.name for kind in KINDS.values() for field in dataclasses.fields(kind)}
SHARED = {"precision", "axis_name", "prior"}  # words of the interface: every kind of model has them
COMMON = {"history", "generator", "output"}  # English words: only as attributes of a model
COMMON |= {"prior", "width", "widths", "channels", "latents", "skip", "encoder", "decoder"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Return the modules of the package that a module imports, anywhere in it."""
    known = {module_name(p) for p in MODULES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & known) or {node.module}
    return {name for name in found if name.startswith("cvae_jax.")}


def package_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path):
    own = package_of(module_name(path))
    upwards = {
        name for name in imported(path) if package_of(name) != own and RANK[package_of(name)] >= RANK[own]
    }
    assert not upwards


def test_no_two_modules_import_each_other():
    """Within a package too, whether directly or through others."""
    graph = {module_name(path): imported(path) for path in MODULES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name in done:
            return
        for other in graph.get(name, ()):
            visit(other, (*above, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_evaluation_and_generation_take_nothing_of_training_but_the_checkpoint():
    for path in [*(PACKAGE / "evaluation").glob("*.py"), *(PACKAGE / "generation").glob("*.py")]:
        taken = {name for name in imported(path) if package_of(name) == "training"}
        assert taken <= {"cvae_jax.training.checkpoint"}, path


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_are_short_or_say_why(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES or "long because" in text.split('"""')[1]


def names_in(path: Path) -> set[str]:
    """Return every identifier, attribute and word of a string in a module, but for its documentation."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    }
    found, attributes = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr not in COMMON or ast.unparse(node.value).endswith("model"):
                attributes.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set() if node.value in documentation else set(re.findall(r"\w+", node.value))
    return attributes | (found - COMMON)


def test_nothing_outside_models_names_the_parts_of_one():
    """But for `import_torch`, which reads the checkpoints of one model."""
    others = [p for p in MODULES if package_of(module_name(p)) not in ("models", "import_torch")]
    found = {module_name(path): names_in(path) & (PARTS_OF_A_MODEL - SHARED) for path in others}
    assert {name: parts for name, parts in found.items() if parts} == {}
    assert names_in(PACKAGE / "models" / "cvae.py") >= {"encode_frame", "cut_previous_features"}


def test_the_package_imports_nothing_of_the_repository_around_it():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"configs", "benchmarks", "tests", "tools"}, (
                path
            )


def test_pmap_and_orbax_are_each_used_in_one_place():
    texts = {module_name(path): path.read_text(encoding="utf-8") for path in MODULES}
    assert [name for name, text in texts.items() if "jax.pmap" in text] == ["cvae_jax.runtime.devices"]
    assert [name for name, text in texts.items() if "import orbax" in text] == [
        "cvae_jax.training.checkpoint"
    ]
