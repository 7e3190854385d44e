"""From the command line's words to a command; this loads neither torch nor diffusers."""

from collections.abc import Sequence
from typing import Annotated

import tyro

from unteach.commands import options, options_guard
from unteach.commands.options import Options

__all__ = ["parse"]

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


def parse(given: Sequence[str]) -> Options:
    """The command that was asked for.

    Raises:
        SystemExit: for ``--help``, and for arguments that no command knows (code 2).
    """
    parsed: Options | options_guard.Guard = tyro.cli(
        Command,
        prog="unteach",
        description="Take concepts out of text-to-image models, see what else changed, keep it from being relearned.",
        args=list(given),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return parsed.command if isinstance(parsed, options_guard.Guard) else parsed
