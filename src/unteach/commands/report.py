"""``unteach report``: one page from results; no model is loaded."""

from unteach.commands.options import Report
from unteach.errors import ConfigError
from unteach.report.html import render

__all__ = ["run"]


def run(options: Report) -> int:
    """Write the page and say where."""
    if not options.results:
        raise ConfigError("no results were named", fix="unteach report RESULTS.json ... --out report.html")
    path = render(list(options.results), options.out, title=options.title)
    print(f"wrote:\n  {path}", flush=True)
    return 0
