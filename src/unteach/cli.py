"""The command line, ``unteach``: erase · evaluate · guard · attack · learn · report · list · demo.

This file reads the arguments and turns errors into messages; :mod:`unteach.commands` does the work, and is imported
only when a command needs it.

Exit codes: 0 done, and for ``guard verify`` conform; 1 ``guard verify`` found a violation, or the demo could not finish
an erasure; 2 wrong arguments or any other error, with a message that says what to do (no verdict); 3 ``guard verify``
cannot decide; 4 ``erase`` wrote its delta, but its check found something else than "erased, the rest kept";
130 interrupted.
"""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import tyro

from unteach.commands import options, options_guard
from unteach.commands.options import Options
from unteach.errors import UnteachError

# What counts is said in full by the commands themselves.
_SAID_BY_COMMANDS = ("unteach.data.concepts", "unteach.erase.check")

Command = (
    Annotated[options.Erase, tyro.conf.subcommand("erase")]
    | Annotated[options.Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[options_guard.Guard, tyro.conf.subcommand("guard")]
    | Annotated[options_guard.Attack, tyro.conf.subcommand("attack")]
    | Annotated[options.Report, tyro.conf.subcommand("report")]
    | Annotated[options.Learn, tyro.conf.subcommand("learn")]
    | Annotated[options.List, tyro.conf.subcommand("list")]
    | Annotated[options.Demo, tyro.conf.subcommand("demo")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` defaults to the process's own arguments.

    Raises:
        SystemExit: for ``--help``, and for arguments that no command knows (code 2).
    """
    given = list(sys.argv[1:] if argv is None else argv)
    # Read when transformers and diffusers are imported, which happens inside the commands.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # Read when torch is loaded: threads that spin while they wait slow each other down on a shared machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    parsed: Options | options_guard.Guard = tyro.cli(
        Command,
        prog="unteach",
        description="Take concepts out of text-to-image models, see what else changed, keep it from being relearned.",
        args=given,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    chosen = parsed.command if isinstance(parsed, options_guard.Guard) else parsed
    debug = chosen.debug or os.environ.get("UNTEACH_DEBUG", "") not in ("", "0")
    try:
        with _logging():
            return chosen.run("unteach " + shlex.join(given))
    except UnteachError as error:
        return _failed(error, str(error), debug)
    except BrokenPipeError:  # such as `unteach list objects | head -3`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        return 0
    except OSError as error:
        return _failed(error, f"the system refused: {error}", debug)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        return 130


def _failed(error: Exception, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"unteach: {message}", file=sys.stderr)
    return 2


@contextmanager
def _logging() -> Iterator[None]:
    """Warnings of the library on stderr, while a command runs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger("unteach")
    quiet = [(logger := logging.getLogger(name), logger.level) for name in _SAID_BY_COMMANDS]
    root.addHandler(handler)
    for logger, _ in quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for logger, level in quiet:
            logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
