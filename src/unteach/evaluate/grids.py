"""Picture grids of an evaluation: before and after with the same noise in one column, as PNG files."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from unteach.core import state
from unteach.data.concepts import Concept
from unteach.evaluate.image_cache import Item
from unteach.evaluate.metrics.presence import Domain
from unteach.evaluate.prompts import SETS, Ask, World
from unteach.records.erasure import Grid

COLUMNS = 12
"""Most columns of a grid; the pictures are spread over what was asked."""


def grids(
    world: World,
    concepts: Sequence[Concept],
    rows: Sequence[Ask],
    items: Sequence[Item],
    before: Tensor,
    after: Tensor,
    folder: Path,
) -> Iterator[Grid]:
    """Write PNG files under ``folder/images`` and name them: for each concept and prompt set, target then
    rest.

    Args:
        world: names of objects and styles.
        concepts: what was taken out.
        rows: what each picture asked for.
        items: prompt and noise seed of each picture.
        before: (N, 3, H, W) uint8 of the unchanged model.
        after: the same with the delta.
        folder: folder of the results file.

    Raises:
        CheckpointError: a picture cannot be written.
    """
    located = [world.locate(concept) for concept in concepts]
    rest = [i for i, row in enumerate(rows) if not any(_asks_for(row, *place) for place in located)]
    parts: list[tuple[str, list[int]]] = [
        (concept.target, [i for i, row in enumerate(rows) if _asks_for(row, *place)])
        for concept, place in zip(concepts, located, strict=True)
    ]
    for concept, members in [*parts, ("", rest)]:
        for prompts in SETS:
            found = [i for i in members if rows[i].set == prompts]
            count = min(COLUMNS, len(found))
            shown = [found[len(found) * k // count] for k in range(count)]
            if not shown:
                continue
            yield Grid(
                name=f"{concept or 'the rest'}: {prompts}",
                role="target" if concept else "retained",
                rows=("before", "after"),
                columns=tuple(f"{rows[i].word}, {world.styles[rows[i].style]}" for i in shown),
                images=(
                    tuple(_save(folder, "before", before[i], items[i]) for i in shown),
                    tuple(_save(folder, "after", after[i], items[i]) for i in shown),
                ),
                captions=tuple(rows[i].prompt for i in shown),
                seeds=tuple(items[i][1] for i in shown),
                prompts=prompts,
                concept=concept,
            )


def png(image: Tensor) -> bytes:
    """A (3, H, W) uint8 picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _asks_for(row: Ask, domain: Domain, index: int) -> bool:
    return (row.style if domain == "style" else row.object) == index


def _save(folder: Path, when: str, image: Tensor, item: Item) -> str:
    path = f"images/{state.fingerprint(list(item))[:16]}-{when}.png"
    state.write_bytes(folder / path, png(image))
    return path
