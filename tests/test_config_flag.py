"""Config files as a user writes them: what is wrong with one is a sentence, and nothing is trained."""

import subprocess
import sys

import pytest
from helpers import ROOT
from ml_collections import ConfigDict

from cvae_jax import defaults
from cvae_jax.study import fields

FILE = """
from cvae_jax import defaults


def get_config():
    config = defaults.get_config()
    {line}
    return config
"""
STUDY = """
from configs import study


def get_config():
    config = study.get_config()
    {line}
    return config
"""
LINE = 7  # of {line}


def run(script, environment, folder, text, *flags):
    """Run a script with a config file of this text; return the one sentence that it ends with."""
    path = folder / "mine.py"
    path.write_text(text)
    command = [sys.executable, str(ROOT / script), f"--config={path}", *flags, f"--workdir={folder / 'w'}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "", done
    settings, *sentences = [line for line in done.stderr.splitlines() if line.strip()]
    assert settings.startswith("CPU settings:")
    (sentence,) = sentences
    assert sentence.startswith("error: ")
    assert not (folder / "w").exists()
    return sentence


def sections(config, path=""):
    """Yield 'a.b' of every section of a config, the whole as ''."""
    yield path
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from sections(value, f"{path}.{name}".lstrip("."))


@pytest.mark.parametrize("section", list(sections(defaults.get_config())))
def test_a_new_field_is_refused_in_every_section(section):
    config = defaults.get_config()
    holder = config
    for name in filter(None, section.split(".")):
        holder = holder[name]
    with pytest.raises(AttributeError, match="locked"):
        holder.no_such_field = 1


WRONG = {
    "field": ("config.learning_rate.paek = 1e-3", "config.learning_rate.paek", "config.learning_rate.peak"),
    "item": ("config['data']['dancer']['sed'] = 1", "config.data.dancer.sed", "config.data.dancer.seed"),
    "update": ("config.beta.update(knd='none')", "config.beta.knd", "config.beta.kind"),
    "section": ("config.optimiser.b1 = 0.8", "config.optimiser", "config.optimizer"),
    "no name": ("defaults.get_config().beta.knd = 1", "knd is not a field; did you mean kind?", ""),
    "new section": ("config.modle = {}", "config.modle", "config.model"),
    "type": ("config.num_epochs = 'many'", "config.num_epochs is many of type str", "of type int"),
    "optional": ("config.data.stride = 'no'", "config.data.stride is no of type str", "of type int"),
    "error": ("1 / 0", "ZeroDivisionError: division by zero", ""),
    "value error": ("int('many')", "ValueError: invalid literal", "'many'"),
    "missing file": ("open('nowhere.txt')", "FileNotFoundError", "nowhere.txt"),
    "import": ("import no_such_module", "ModuleNotFoundError", "no_such_module"),
    "syntax": ("def (", "SyntaxError: invalid syntax", ""),
}


@pytest.mark.parametrize("line, named", [(line, named) for line, *named in WRONG.values()], ids=WRONG.keys())
def test_what_is_wrong_in_a_config_file_is_named_with_its_line(environment, tmp_path, line, named):
    sentence = run("train.py", environment, tmp_path, FILE.format(line=line))
    assert f"mine.py, line {LINE}: " in sentence
    assert all(part in sentence for part in named)


def test_an_error_in_a_file_beside_the_config_is_named_where_it_is(environment, tmp_path):
    (tmp_path / "shared.py").write_text("def change(config):\n    config.seeed = 1\n")
    text = FILE.replace("from cvae_jax", "from shared import change\nfrom cvae_jax", 1)
    sentence = run("train.py", environment, tmp_path, text.format(line="change(config)"))
    assert "shared.py, line 2: config.seeed is not a field; did you mean config.seed?" in sentence


def test_the_command_line_says_the_same(environment, tmp_path):
    flag = "--config.learning_rate.paek=1"
    sentence = run("train.py", environment, tmp_path, FILE.format(line="pass"), flag)
    assert sentence.startswith(
        "error: config.learning_rate.paek is not a field; did you mean config.learning_rate.peak? (see"
    )


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("x = 1", "mine.py has no function get_config()"),
        ("def get_config():\n    pass", "get_config() of the config file returned None"),
        ("def get_config():\n    return {'name': 'x'}", "get_config() returned a value of type dict"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    return ConfigDict({'name': 'x', 'num_epoch': 3})",
            "config.num_epoch is not a field; did you mean config.num_epochs?; missing: config.accumulate",
        ),
        (
            FILE.format(line="config.learning_rate = {'peak': 1e-3}"),
            "missing: config.learning_rate.end, config.learning_rate.per, config.learning_rate.warmup_epochs",
        ),
        (FILE.format(line="config.name = None"), "config.name is None; give a value of type str"),
    ],
    ids=["no function", "nothing", "dict", "own", "section replaced", "none"],
)
def test_a_config_that_is_none_is_refused(environment, tmp_path, text, sentence):
    assert sentence in run("train.py", environment, tmp_path, text)


@pytest.mark.parametrize(
    "line, named",
    [
        ("config.base.learning_rate.paek = 1", "did you mean config.base.learning_rate.peak?"),
        ("config.seedz = 3", "config.seedz is not a field; did you mean config.seeds?"),
        ("config.figures.forcng = ''", "did you mean config.figures.forcing?"),
        (
            "config.changes.none.beta = {'knd': 'none'}",
            "config.changes.none does not fit the config of a run: config.beta.knd is not a field; did you",
        ),
        ("config.seeds = 'three'", "config.seeds is "),
    ],
)
def test_a_study_is_as_strict(environment, tmp_path, line, named):
    assert named in run("study.py", environment, tmp_path, STUDY.format(line=line))


def test_the_fields_of_a_study_are_those_of_its_configs():
    from configs import study

    template, written = fields.get_config(), study.get_config()
    assert set(template) == set(written) and set(template.figures) == set(written.figures)
    assert len(template.changes) == 0  # open
