"""``unteach guard verify``: check an upload; in a file of its own, so that a CI need not wait for diffusers."""

import json
import os
import sys

from unteach.commands.options_guard import GuardVerify
from unteach.errors import UnteachError, printable
from unteach.guard import verify as checking

__all__ = ["verify"]


def verify(options: GuardVerify) -> int:
    """Print the verdict and return its exit code; whatever goes wrong, nobody is told "conform" by mistake."""
    try:
        verdict = checking.verify(
            options.base,
            options.candidate,
            options.manifest,
            signature=options.signature,
            public_key=options.public_key,
        )
    except (UnteachError, OSError):
        raise
    except Exception as error:  # a plain traceback would leave with 1, which means "violates"
        raise UnteachError("the check itself failed: there is no verdict", found=repr(error)) from error
    try:
        print(json.dumps(verdict.to_dict(), indent=2) if options.json else printable(verdict.text()), flush=True)
    except BrokenPipeError:  # nobody listens any more; the exit code still counts
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    return verdict.exit_code
