"""The command line, ``unteach``: erase · evaluate · guard · attack · learn · report · list · demo.

This file reads the arguments and turns signals and errors into messages and exit codes; each command is one file of
:mod:`unteach.commands`, of which only the one that is asked for is imported. Nothing but the standard library comes
before interrupts are handled.

Exit codes: 0 done, and for ``guard verify`` conform; 1 ``guard verify`` found a violation, or the demo could not finish
an erasure; 2 wrong arguments or any other error, with a message that says what to do (no verdict); 3 ``guard verify``
cannot decide; 4 ``erase`` wrote its delta, but its check found something else than "erased, the rest kept"; 128 + n
stopped by signal n: 130 interrupted (Ctrl-C), 143 terminated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from unteach.core.stopping import Stopped, end_with_parent, stoppable
from unteach.errors import UnteachError, printable, shorten

if TYPE_CHECKING:
    from unteach.commands.verb import Verb

VERBS: Mapping[str, str] = {
    "erase": "Erase",
    "evaluate": "Evaluate",
    "guard": "Guard",
    "attack": "Attack",
    "report": "Report",
    "learn": "Learn",
    "list": "List",
    "demo": "Demo",
}
"""Each command and its class, in the module of its name."""

# What counts is said in full by the commands themselves.
_SAID_BY_COMMANDS = ("unteach.data.concepts", "unteach.erase.check")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` defaults to the process's own arguments.

    Raises:
        SystemExit: for ``--help``, and for arguments that no command knows (code 2).
    """
    with stoppable(restore=argv is not None):
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(given: Sequence[str]) -> int:
    debug = "--debug" in given or os.environ.get("UNTEACH_DEBUG", "") not in ("", "0")
    stopped = "stopped"
    try:
        end_with_parent()
        # Read when transformers and diffusers are imported, which happens inside the commands.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        # Read when torch is loaded: threads that spin while they wait slow each other down on a shared machine.
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
        from unteach.commands.console import typed

        chosen = parse(given)
        stopped = chosen.stopped
        with _logging():
            return chosen.run(typed(given))
    except UnteachError as error:
        return _failed(error, str(error), debug)
    except BrokenPipeError:  # such as `unteach list objects | head -3`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        return 0
    except OSError as error:
        return _failed(error, f"the system refused: {shorten(str(error))}", debug)
    except KeyboardInterrupt as error:
        if debug:
            _show(error)
        print(f"\n{stopped}", file=sys.stderr)
        return error.code if isinstance(error, Stopped) else 130


def parse(given: Sequence[str]) -> Verb:
    """The command that was asked for, with its options.

    Raises:
        SystemExit: for ``--help``, and for arguments that no command knows (code 2).
    """
    import functools
    from importlib import import_module
    from operator import or_

    import tyro

    def kind(name: str) -> Any:
        module, _, found = VERBS[name].rpartition(".")
        return getattr(import_module(f"unteach.commands.{module or name}"), found)

    how: dict[str, Any] = {"config": (tyro.conf.FlagCreatePairsOff,)}
    if given and given[0] in VERBS:
        chosen = tyro.cli(kind(given[0]), prog=f"unteach {given[0]}", args=list(given[1:]), **how)
    else:  # help, or a mistake
        text = "Take concepts out of text-to-image models, see what else changed, keep it from being relearned."
        every: Any = functools.reduce(or_, (Annotated[kind(name), tyro.conf.subcommand(name)] for name in VERBS))
        chosen = tyro.cli(every, prog="unteach", description=text, args=list(given), **how)
    verb: Verb = getattr(chosen, "command", chosen)
    return verb


def _failed(error: Exception, message: str, debug: bool) -> int:
    if debug:
        _show(error)
    print(f"unteach: {printable(message)}", file=sys.stderr)
    return 2


def _show(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)


@contextmanager
def _logging() -> Iterator[None]:
    """Warnings of the library on stderr, while a command runs."""
    import logging

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record))

    handler = logging.StreamHandler()
    handler.setFormatter(Lines("%(levelname)s: %(message)s"))
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
