"""What the scripts share: flags parsed, and a user's mistake reported in one sentence with exit status 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from absl import app, flags, logging

import cvae_jax
from cvae_jax.runtime.errors import NonFiniteError, StorageError, UserError

CONFIG_HELP = "see the fields and their types in cvae_jax/defaults.py"
FLAGS_HELP = "--help lists the flags"
PLAN = "python -m cvae_jax.plan"
CONFIG_FORM = "write --config.field=value and --workdir=folder"


def run(
    main: Callable[[], None],
    doc: str,
    help: str | None = None,
    form: str = CONFIG_FORM,
    explain: Callable[[Callable[[], Any]], Any] = lambda parse: parse(),
    resumes: bool = False,
) -> None:
    """Parse the flags and call main; a user's mistake ends with a sentence and exit status 2.

    doc: the text above the flags in --help.
    help, form: where a sentence on a flag that cannot be parsed, or is none, sends the user. help: see
      `parse_or_exit`.
    explain: calls the parser of the flags; it may end the program with a better sentence.
    resumes: see `guarded`.
    """
    # Orbax warns whenever it opens a folder to read only, and logs the traceback of each error it raises.
    logging.set_verbosity(logging.FATAL)
    sys.excepthook = _show_uncaught
    _document(doc)

    def parse(argv: list[str]) -> list[str]:
        rest = parse_or_exit(lambda: explain(lambda: flags.FLAGS(argv)), help)
        if len(rest) > 1:
            fail(f"{rest[1]!r} is not a flag; {form}.")
        return rest

    app.run(lambda _: guarded(main, resumes), flags_parser=parse)


def script(name: str) -> str:
    """Return how a script is called in the way this program was started: train.py or cvae-train."""
    installed = Path(sys.argv[0]).name.startswith("cvae-")
    cloned = (Path(cvae_jax.__file__).parent.parent / f"{name}.py").is_file()
    return f"{name}.py" if cloned and not installed else f"cvae-{name}"


def command(name: str) -> str:
    """Return the command that starts a script: python train.py or cvae-train."""
    program = script(name)
    return f"python {program}" if program.endswith(".py") else program


def asks_for_help(argv: list[str]) -> bool:
    """Return whether the flags ask for nothing but help."""
    return bool({"--help", "-help", "--helpfull", "--helpshort"} & set(argv))


def parse_or_exit(parse: Callable[[], Any], help: str | None = None) -> Any:
    """Return parse(), or end with a sentence where a flag cannot be parsed.

    help: where the sentence sends the user. None: to the fields of a config, or for other flags to --help.
    """
    try:
        return parse()
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
        names_field = not isinstance(error, flags.Error) or re.search(r"\bconfig\b", str(error))
        fail(f"{one_line(error)} ({help or (CONFIG_HELP if names_field else FLAGS_HELP)})")


def guarded(main: Callable[[], Any], resumes: bool = False) -> Any:
    """Return main(), or end with the sentence of what went wrong.

    resumes: whether running the same command again continues the work.
    """
    try:
        return main()
    except UserError as error:
        fail(str(error))
    except NonFiniteError as error:
        fail(str(error), status=1)
    except OSError as error:
        number = StorageError.number_in(error)
        if number is None and error.filename is None:
            raise
        if number is None:
            fail(f"{error.filename}: {error.strerror}; check this path.")
        fail(str(StorageError(error.filename or "a file", number, "read or write")))
    except MemoryError as error:
        fail(f"Out of memory ({one_line(error)}): lower config.batch_size or the sizes in config.model.")
    except RuntimeError as error:  # what JAX raises is one
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fail(
            "The devices ran out of memory: lower config.batch_size or config.rollout.time_chunk (in a "
            "validation or evaluation config.eval.batch_size, in a study config.together); "
            f"{PLAN} with the config of a run prints the largest batch that fits.",
        )
    except KeyboardInterrupt:
        fail(f"Interrupted{'; run the same command again to resume' if resumes else ''}.", status=130)


def fail(sentence: str, status: int = 2) -> NoReturn:
    """Print a sentence on standard error and exit."""
    print(f"\nerror: {sentence}" if sys.stderr.isatty() else f"error: {sentence}", file=sys.stderr)
    sys.exit(status)


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line, without a full stop."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an uncaught exception as Python does.

    But not those of TensorStore's threads: where a write fails, orbax raises its error and closes the event
    loop, and the threads of the other writes complain that they find it closed.
    """
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)


def _document(doc: str) -> None:
    """Make --help show `doc`, naming the program as it was started, and the flags of the calling script.

    absl shows the docstring and the flags of the module that Python started, which only calls a script.
    """
    name = Path(sys.argv[0]).stem.removeprefix("cvae-")
    sys.modules["__main__"].__doc__ = doc.replace(f"python {name}.py", command(name))
    shown = flags.FLAGS.get_key_flags_for_module(f"{cvae_jax.__name__}.scripts.{name}")
    for flag in [*shown, *(flags.FLAGS[name] for name in ("config",) if name in flags.FLAGS)]:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
