"""``unteach report``: one page from results, or of a guard and its attacks; no model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from unteach.commands.console import wrote
from unteach.commands.verb import Verb
from unteach.errors import ConfigError

__all__ = ["Report"]


@dataclass(frozen=True, kw_only=True)
class Report(Verb):
    """Make one self-contained HTML page from the results of one or more evaluations; loads no model."""

    results: Annotated[Positional[tuple[Path, ...]], arg(metavar="RESULTS ...")]
    """Files results.json, or folders that hold one."""
    out: Annotated[Path, arg(metavar="FILE.html")] = Path("report.html")
    """The page."""
    title: Annotated[str, arg(metavar="TEXT", help_behavior_hint="(default: made from the concepts)")] = ""
    """Headline of the page."""

    def run(self, command: str) -> int:
        """Write the page and say where."""
        from unteach.report.guarding import find, is_guard, render_guard
        from unteach.report.html import render

        if not self.results:
            raise ConfigError("no results were named", fix="unteach report RESULTS.json ... --out report.html")
        guards = [path for path in self.results if is_guard(path)]
        if not guards:
            path = render(list(self.results), self.out, title=self.title)
        elif len(guards) < len(self.results):
            raise ConfigError(
                "a guard's page is not mixed with other results",
                found=", ".join(str(p) for p in self.results if p not in guards),
                fix="make a page for each",
            )
        else:
            path = render_guard(*find(guards), _place(guards[0], self.out), title=self.title)
        wrote([path])
        return 0


def _place(first: Path, out: Path) -> Path:
    """``report.html`` in the guard's folder unless another place was asked for."""
    return out if out != Path("report.html") else (first if first.is_dir() else first.parent) / out
