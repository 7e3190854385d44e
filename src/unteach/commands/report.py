"""``unteach report``: one page of everything that other commands wrote; no model is loaded."""

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
    """Make one self-contained HTML page from the folders of erasures, evaluations, guards, attacks or learning runs."""

    results: Annotated[Positional[tuple[Path, ...]], arg(metavar="FOLDER ...")]
    """Folders that other commands wrote, or single files of theirs."""
    out: Annotated[
        Path | None, arg(metavar="FILE.html", help_behavior_hint="(default: report.html in the first folder)")
    ] = None
    """The page."""
    title: Annotated[str, arg(metavar="TEXT", help_behavior_hint="(default: made from the records)")] = ""
    """Headline of the page."""

    def run(self, command: str) -> int:
        """Write the page and say where."""
        from unteach.report.page import NAME, page

        if not self.results:
            raise ConfigError("no results were named", fix="unteach report FOLDER ... --out report.html")
        first = self.results[0]
        out = self.out or (first if first.is_dir() else first.parent) / NAME
        wrote([page(self.results, out, title=self.title)])
        return 0
