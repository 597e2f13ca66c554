"""The --config flag of the scripts: configs are loaded strictly, and a mistake in one is one sentence."""

from __future__ import annotations

import itertools
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cvae_jax.runtime import cli
from cvae_jax.runtime.config_fields import field_sentence
from cvae_jax.runtime.errors import UserError

FLAG = "config"
_MODULE = f"{FLAG}_config"  # what ml_collections calls the module of a config file


def define_file(default: str, help: str) -> flags.FlagHolder:
    """Define --config as the path of a config file; `read` returns its config.

    As under `python -m`, the file can import from the current directory (`from configs import ...`).
    Overrides on the command line are applied here, so a mistake in one ends the program here.
    """
    path = _chosen(sys.argv, default).split(":")[0]
    if not Path(path).is_file() and not cli.asks_for_help(sys.argv):
        cli.fail(
            f"There is no config file {path} in {Path.cwd()}: give --{FLAG}=FILE, the path of one."
            if path
            else f"--{FLAG} is empty: give the path of a config file."
        )
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(1, os.getcwd())  # after the folder of the script
    return cli.parse_or_exit(lambda: explained(lambda: config_flags.DEFINE_config_file(FLAG, default, help)))


def read(holder: flags.FlagHolder, template: ConfigDict) -> ConfigDict:
    """Return the config of a flag of `define_file`, with exactly the fields of `template`.

    Raises UserError otherwise.
    """
    from cvae_jax.config import check_fields  # not before the settings of JAX are made

    config = cli.parse_or_exit(lambda: explained(lambda: _accessed(holder.value)))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() returned a value of type {type(config).__name__}: return a ConfigDict."
        )
    check_fields(config, template)
    return config


def define_stored(template: ConfigDict) -> flags.FlagHolder:
    """Define --config.* as overrides of the config stored in --workdir, which must be defined already.

    The run's own config, read first, gives the flags their fields and types.
    """
    stored = template if cli.asks_for_help(sys.argv) else _stored(template)
    help = "Overrides of the run's config."
    return cli.parse_or_exit(lambda: explained(lambda: config_flags.DEFINE_config_dict(FLAG, stored, help)))


def explained(load: Callable[[], Any]) -> Any:
    """Return load(), and end with a sentence where a config file or an override is wrong.

    A sentence on a config file names the file and the line. Other exceptions are raised as they are.
    """
    try:
        return load()
    except Exception as error:
        for cause in _chain(error):
            where, sentence = _place(cause), field_sentence(cause)
            if sentence:
                cli.fail(f"{where}{sentence} ({cli.CONFIG_HELP})")
            if where:
                said = cause.msg if isinstance(cause, SyntaxError) else cli.one_line(cause)
                cli.fail(f"{where}{type(cause).__name__}: {said}.")
            module = cause.obj if isinstance(cause, AttributeError) and cause.name == "get_config" else None
            if isinstance(module, types.ModuleType):
                cli.fail(
                    f"{module.__file__} has no function get_config(): write one, returning a ConfigDict."
                )
        if "Unexpected None value" in str(error):
            cli.fail("get_config() of the config file returned None: return a ConfigDict.")
        raise


def _stored(template: ConfigDict) -> ConfigDict:
    """Return W/config.json of the --workdir on the command line; a missing or broken one ends the program."""
    from cvae_jax import config  # not before the settings of JAX are made

    cli.parse_or_exit(lambda: flags.FLAGS(sys.argv, known_only=True))
    workdir = flags.FLAGS.workdir
    if not workdir:
        cli.fail(f"--workdir is missing; give the folder of a run that {cli.script('train')} has started.")
    return cli.guarded(lambda: config.load(Path(workdir), template))


def _chosen(argv: list[str], default: str) -> str:
    """Return the path that --config gives, or the default."""
    path = default
    for arg, following in itertools.pairwise([*argv[1:], ""]):
        if match := re.fullmatch(rf"--?{FLAG}(?:=(.*))?", arg, re.DOTALL):
            path = following if match[1] is None else match[1]
    return path


def _accessed(config: Any) -> Any:
    """Return a config; one that could not be loaded raises the reason when it is accessed."""
    getattr(config, "to_dict", None)
    return config


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those it was raised from or during, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _place(error: BaseException) -> str:
    """Return 'FILE, line N: ' of an error in a config file, or in what it imports from beside it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [frame.f_code.co_filename for frame, _ in frames if frame.f_globals.get("__name__") == _MODULE]
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{error.filename}, line {error.lineno}: "
    if not own:
        return ""
    folder = Path(own[0]).resolve().parent
    files = [(frame.f_code.co_filename, line) for frame, line in frames]
    path, line = [(path, line) for path, line in files if Path(path).resolve().parent == folder][-1]
    return f"{path.removeprefix(os.getcwd() + os.sep)}, line {line}: "
