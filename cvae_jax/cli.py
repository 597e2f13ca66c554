"""What the doors share: flags parsed and mistakes told in one sentence, with exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from cvae_jax.errors import NonFiniteError, UserError

CONFIG_HELP = "see the fields and their types in configs/default.py"
CONFIG_FORM = "write --config.field=value and --workdir=folder"


def run(main: Callable[[], None], help: str = CONFIG_HELP, form: str = CONFIG_FORM) -> None:
    """Parse the flags and call main; a user's mistake ends with a sentence and exit status 2.

    help, form: where a sentence on a flag that cannot be parsed, or is none, sends the user.
    """
    logging.set_verbosity(logging.ERROR)  # orbax warns whenever it opens a folder to read only
    app.run(lambda _: guarded(main), flags_parser=lambda argv: _parse(argv, help, form))


def stored_config(argv: list[str], template: ConfigDict) -> ConfigDict:
    """Return W/config.json of the --workdir in argv; a missing or broken one ends the program."""
    from cvae_jax import config

    if {"--help", "-help", "--helpfull", "--helpshort"} & set(argv):
        return template
    told(lambda: flags.FLAGS(argv, known_only=True))
    workdir = flags.FLAGS.workdir
    if not workdir:
        fail("--workdir is missing; give the folder of a run that train.py has started.")
    return guarded(lambda: config.load(Path(workdir), template))


def told(parse: Callable[[], Any], help: str = CONFIG_HELP) -> Any:
    """Return parse(), or end with a sentence where a flag cannot be parsed.

    A config flag reads its overrides already where it is defined, so doors define it through this.
    """
    try:
        return parse()
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
        fail(f"{_one_line(error)} ({help})")


def _parse(argv: list[str], help: str, form: str) -> list[str]:
    rest = told(lambda: flags.FLAGS(argv), help)
    if len(rest) > 1:
        fail(f"{rest[1]!r} is not a flag; {form}.")
    return rest


def guarded(main: Callable[[], Any]) -> Any:
    """Return main(), or end with the sentence of what went wrong."""
    try:
        return main()
    except UserError as error:
        fail(str(error))
    except NonFiniteError as error:
        fail(str(error), status=1)
    except KeyboardInterrupt:
        fail("Interrupted; run the same command again to go on.", status=130)


def fail(sentence: str, status: int = 2) -> NoReturn:
    """Print a sentence on standard error and exit."""
    print(f"\nerror: {sentence}" if sys.stderr.isatty() else f"error: {sentence}", file=sys.stderr)
    sys.exit(status)


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
