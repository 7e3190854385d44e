"""Numbers and tables as people read them."""

from collections.abc import Sequence

__all__ = ["aligned", "duration", "size"]


def duration(seconds: float) -> str:
    """Wall time: "0.8 s", "52 s", "1 min 52 s", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float, unit: str = "B") -> str:
    """A large number with a decimal prefix: "17.0 MB", "4.26 M"."""
    prefixes = ["", "k", "M", "G", "T"]
    while abs(count) >= 999.5 and len(prefixes) > 1:
        count /= 1000
        prefixes.pop(0)
    digits = 0 if prefixes[0] == "" or abs(count) >= 99.95 else 1 if abs(count) >= 9.995 else 2
    return f"{count:.{digits}f} {prefixes[0]}{unit}".strip()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as left-aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(f"  {line}" for line in lines)
