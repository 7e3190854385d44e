"""Write the figures of docs/security.md from the results of the drivers, so that no number is typed by hand.

python benchmarks/security/page.py
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unteach.core import state

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures: written by benchmarks/security/page.py -->\n", "<!-- end of figures -->\n"


def kills(found: dict[str, Any]) -> list[str]:
    rows = [
        f"| killed, run again, compared: {name} | {row['kills']} kills | "
        + (
            "every result the same, nothing left"
            if not any(row[key] for key in ("orphans", "rounds with litter", "rounds with another result"))
            else f"processes left: {row['orphans']}; rounds with files left: {row['rounds with litter']}; "
            f"with another result: {row['rounds with another result']}"
        )
        + " |"
        for name, row in found["commands"].items()
    ]
    by = {how: sum(row["by"][how] for row in found["commands"].values()) for how in ("SIGKILL", "SIGTERM", "SIGINT")}
    by["Ctrl-C in a terminal"] = found["kills"] - sum(by.values())
    told = ", ".join(f"{count} {how}" for how, count in by.items())
    held = f"{found['rounds that held']} of {found['rounds']} rounds held"
    return [*rows, f"| all of these (seed {found['config']['seed']}) | {found['kills']} kills: {told} | {held} |"]


def mutations(found: dict[str, Any]) -> list[str]:
    read = sum(row["read"] for row in found["readers"].values())
    counts = ", ".join(f"{found[key]} {key}" for key in ("tracebacks", "hangs", "code run", "deaths", "long messages"))
    slowest = max(row["slowest, seconds"] for row in found["readers"].values())
    what = f"damaged files for {len(found['readers'])} readers (seed {found['config']['seed']})"
    often = f"{found['files']:,} files, {read:,} of them still readable"
    return [f"| {what} | {often} | {counts}; the slowest took {slowest:.1f} s |"]


def forgeries(found: dict[str, Any]) -> list[str]:
    counts = found["counts"]
    outcomes = counts["forgeries by outcome"]
    told = (
        f"{outcomes.get('conform', 0)} conform; {outcomes['violates']} violate, {outcomes['undecidable']} undecidable"
    )
    told += f", {outcomes['error']} refused without a verdict" if outcomes.get("error") else ""
    honest = counts["honest uploads by outcome"]
    return [
        f"| forged uploads of guarded models (seed {found['config']['seed']}) | "
        f"{counts['forgeries']} different ones, in {sum(outcomes.values())} cases | {told} |",
        f"| honest uploads beside them | {sum(honest.values())} cases | {honest.get('conform', 0)} conform |",
    ]


def table() -> str:
    """The rows of what there is."""
    rows = ["| what | how often | what came of it |", "|---|---|---|"]
    for name, told in DRIVERS.items():
        if (RESULTS / name).exists():
            rows += told(state.read_table(RESULTS / name))
    return "\n".join(rows) + "\n"


DRIVERS: Mapping[str, Callable[[dict[str, Any]], list[str]]] = {
    "security_kills.json": kills,
    "security_mutations.json": mutations,
    "security_forgeries.json": forgeries,
}


def filled(page: str) -> str:
    """The page with the table between its marks."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
