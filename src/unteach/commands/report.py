"""``unteach report``: one page from results, or of a guard and its attacks; no model is loaded."""

from pathlib import Path

from unteach.commands.options import Report
from unteach.commands.terminal import wrote
from unteach.errors import ConfigError
from unteach.report.guarding import find, is_guard, render_guard
from unteach.report.html import render

__all__ = ["run"]


def run(options: Report) -> int:
    """Write the page and say where."""
    if not options.results:
        raise ConfigError("no results were named", fix="unteach report RESULTS.json ... --out report.html")
    guards = [path for path in options.results if is_guard(path)]
    if not guards:
        path = render(list(options.results), options.out, title=options.title)
    elif len(guards) < len(options.results):
        raise ConfigError(
            "a guard's page is not mixed with other results",
            found=", ".join(str(p) for p in options.results if p not in guards),
            fix="make a page for each",
        )
    else:
        path = render_guard(*find(guards), _place(guards[0], options.out), title=options.title)
    wrote([path])
    return 0


def _place(first: Path, out: Path) -> Path:
    """``report.html`` in the guard's folder unless another place was asked for."""
    return out if out != Path("report.html") else (first if first.is_dir() else first.parent) / out
