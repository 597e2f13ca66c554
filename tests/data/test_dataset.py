"""The interface of a data set, and what all of them keep to."""

import ast
import dataclasses
import inspect
import pathlib
import subprocess
import sys

import pytest

from cvae_jax import defaults
from cvae_jax.config import Components
from cvae_jax.data import datasets
from cvae_jax.data.dataset import DataSet, require_at_least
from cvae_jax.data.load import load_data
from cvae_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_the_modules_of_the_folder_are_the_data_sets() -> None:
    folder = pathlib.Path(datasets.__file__).parent
    assert datasets.names() == sorted(path.stem for path in folder.glob("[!_]*.py"))
    assert all(isinstance(datasets.find(name), DataSet) for name in datasets.names())


def test_the_sections_of_data_sets_import_no_framework() -> None:
    program = (
        "import sys; from cvae_jax.data import datasets; assert datasets.sections(); "
        "heavy = ('tensorflow_datasets', 'tensorflow', 'av', 'jax', 'grain', 'matplotlib'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_nothing_outside_data_names_a_data_set() -> None:
    """But for the default, configs, prepare.py (writes data of one kind) and turns.py (plots one)."""
    found = []
    for path in sorted((ROOT / "cvae_jax").rglob("*.py")):
        part = path.relative_to(ROOT / "cvae_jax").parts
        if part[0] in ("data", "prepare") or part in (("defaults.py",), ("study", "turns.py")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Constant) and node.value in datasets.names()
            imported = isinstance(node, ast.ImportFrom) and node.module == "cvae_jax.data.datasets"
            if named or imported:
                found.append(f"{path.name}:{node.lineno}")
    assert not found


@pytest.mark.parametrize("name", datasets.names())
def test_every_option_is_described_and_accepted_at_its_default(name: str) -> None:
    options = datasets.find(name).options
    if options is None:
        return
    assert datasets.make_options(name, defaults.get_config().data[name].to_dict()) == options()
    source = inspect.getsource(options)
    for field in options.__dataclass_fields__:
        (line,) = [line for line in source.splitlines() if line.strip().startswith(f"{field}: ")]
        assert "  # " in line


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UserError, match="The data set kth has no option lables: choose from labels, eval_f"):
        datasets.load("kth", data_dir=None, cache_dir="", frame_size=None, options={"lables": "none"})
    with pytest.raises(UserError, match="The data set real_clips has no option seed: it has none at all"):
        datasets.load("real_clips", data_dir=None, cache_dir="", frame_size=None, options={"seed": 1})


@pytest.mark.parametrize(
    ("name", "option", "value", "sentence"),
    [
        ("bair", "labels", "pose", "config.data.bair.labels is 'pose'; choose one of action, none."),
        ("bair", "train_sequences", 0, "config.data.bair.train_sequences is 0; give at least 1."),
        ("kth", "eval_frames", 1, "config.data.kth.eval_frames is 1; give at least 2."),
        (
            "stochastic_moving_mnist",
            "seed",
            2**32,
            "config.data.stochastic_moving_mnist.seed is 4294967296; give a number below 2**32.",
        ),
    ],
)
def test_options_are_refused_before_anything_is_loaded(name: str, option: str, value, sentence: str) -> None:
    """Those of other data sets than the run's as well."""
    config = defaults.get_config()
    config.data[name][option] = value
    with pytest.raises(UserError) as caught:
        Components.build(config)
    assert str(caught.value) == sentence


def test_none_is_accepted_where_it_is_the_default() -> None:
    @dataclasses.dataclass
    class Options:
        some: int | None = None
        all: int = 1

    require_at_least("x", Options(), some=1, all=1)
    given = Options()
    given.all = None
    with pytest.raises(UserError, match="config.data.x.all is None; give at least 1."):
        require_at_least("x", given, some=1, all=1)


@pytest.mark.parametrize("name", ["cifar", "dir", "cache"])
def test_an_unknown_data_set_is_refused_before_anything_is_loaded(name: str) -> None:
    config = defaults.get_config()
    config.data.name = name
    for refused in (lambda: Components.build(config), lambda: load_data(config.data, 1)):
        with pytest.raises(UserError, match=f"There is no data set named {name}: set --config.data.name to"):
            refused()


def test_the_frame_size_is_known_without_loading(tmp_path: pathlib.Path) -> None:
    for name in ("real_clips", "stochastic_moving_mnist"):
        section = {} if name == "real_clips" else dict(train_sequences=1, test_sequences=0)
        data = datasets.load(name, data_dir=None, cache_dir=str(tmp_path), frame_size=None, options=section)
        assert data["validation"][0].frames.shape[1:3] == datasets.find(name).default_frame_size(None)
