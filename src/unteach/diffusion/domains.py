"""Domains of a guard or an attack: pictures with captions, and the role that each has.

The pictures are halved by one seed: some to learn masks from (roles ``user`` and ``publisher``), others to attack with
and to measure on (``attack``, ``probe``). In a folder no picture has two roles. Each icon of a bundled domain is drawn
several times, a little scaled and shifted; an icon is on one side only, and within a side the two roles have views of
their own: so a probe asks whether what was attacked with was learned, in views that nothing was trained on.

A picture's name is a hash of its pixels, so it is known again under any folder's or file's name.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unteach.core import seeds, state
from unteach.core.registry import near
from unteach.data import emoji
from unteach.data.captioned import captioned
from unteach.diffusion.examples import Examples, encoded
from unteach.diffusion.model import Model
from unteach.errors import ConfigError, DataError, UnteachError

__all__ = [
    "REST",
    "ROLES",
    "Domain",
    "Domains",
    "apart",
    "available",
    "check_names",
    "digests",
    "rest",
    "shown",
    "source",
]

ROLES = ("user", "publisher", "attack", "probe")
SIDES: Mapping[str, tuple[str, str]] = {"mask": ("user", "publisher"), "attack": ("attack", "probe")}
VIEWS: Mapping[str, range] = {"user": range(3), "publisher": range(3, 6), "attack": range(4), "probe": range(4, 6)}
"""Views of an icon that a role has."""
SHARES: Mapping[str, float] = {"user": 0.6, "attack": 0.6}
"""Of a side's pictures in a folder; the rest is for the side's other role."""
MOST_PROBES = 64
"""Pictures of one domain that are measured on, at most."""
REST, REST_PICTURES = "canvas", 48
"""The probe for everything else: the bundled model's own concepts."""


def available() -> dict[str, int]:
    """The bundled adaptation domains and their number of icons; nothing is decoded."""
    return {name: len(spec["items"]) for name, spec in emoji.index()["domains"].items()}


def shown(given: str) -> str:
    """What a domain is called in records: its name, or its folder's without the path."""
    return given if given in available() else Path(given).expanduser().resolve().name


def source(given: str, *, bundled: bool) -> Path | None:
    """The folder that was meant; None for a bundled domain.

    Args:
        given: NAME or FOLDER.
        bundled: whether the model is the bundled one, whose domains have names.

    Raises:
        ConfigError: neither; DataError: a folder without captions.
    """
    if given in available():
        if bundled:
            return None
        raise ConfigError(f"'{given}' is a domain of the bundled model", fix="give a folder of captioned pictures")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"no domain and no folder is called '{given}'", fix=near(given, available()))
    if not (folder / "metadata.jsonl").is_file():
        raise DataError(
            f"there are no captions in {given}",
            found="no metadata.jsonl",
            fix='write one {"file_name": "a.png", "text": "a caption"} a line',
        )
    return folder


def check_names(given: Sequence[str]) -> None:
    """Refuse domains that would be called the same in records.

    Raises:
        ConfigError: says which.
    """
    names = [shown(each) for each in given]
    if double := sorted({name for name in names if names.count(name) > 1 or name == REST}):
        raise ConfigError(f"two domains are called {', '.join(map(repr, double))}", fix="give other folder names")


@dataclass(frozen=True, eq=False)
class Domain:
    """A domain with its pictures split; :meth:`read` makes it.

    Attributes:
        name: in records.
        ids: hash of each picture.
        captions: each picture's caption.
        roles: role → rows of its pictures.
        views: role → views that are drawn of each picture.
        draw: (rows, view) → images (N, 3, H, W) in [0, 1].
    """

    name: str
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    roles: dict[str, tuple[int, ...]]
    views: Mapping[str, range]
    draw: Callable[[Tensor, int], Tensor]

    @classmethod
    def read(cls, given: str, model: Model, seed: int) -> "Domain":
        """A bundled domain or a folder, split by ``seed``.

        Raises:
            ConfigError, DataError: no such domain, or pictures that cannot be used.
        """
        name = shown(given)
        if given in available():
            icons = emoji.adaptation()[given]

            def drawn(rows: Tensor, view: int) -> Tensor:
                every = icons.views(torch.arange(len(icons.icons)), seeds.generator(0, f"views of {given}", view))
                return every[rows]

            ids = _hashes(emoji.draw(icons.icons))
            return cls(name, ids, tuple(icons.captions()), _by_icon(ids, seed), VIEWS, drawn)
        _, height, width = model.image_shape
        folder = captioned(Path(given).expanduser(), (height, width))
        ids = _hashes(folder.images)
        roles = _by_picture(ids, seed, given)
        once = {role: range(1) for role in ROLES}
        return cls(name, ids, folder.captions, roles, once, lambda rows, _: folder.images[rows])

    def side(self, which: str) -> set[str]:
        """Hashes of the pictures of one side: "mask" or "attack"."""
        return {self.ids[row] for role in SIDES[which] for row in self.roles[role]}

    def examples(self, model: Model, role: str) -> Examples:
        """The role's pictures, encoded; for "probe" at most :data:`MOST_PROBES`."""
        views, rows = self.views[role], self.roles[role]
        if role == "probe":
            rows = rows[: max(1, MOST_PROBES // len(views))]
        index = torch.tensor(rows, dtype=torch.int64)
        images = torch.cat([self.draw(index, view) for view in views])
        suffix = [f"/view {view}" if self.views is VIEWS else "" for view in views]
        ids = [self.ids[row] + end for end in suffix for row in rows]
        return encoded(model, f"{self.name}/{role}", images, [self.captions[row] for row in rows] * len(views), ids)


@dataclass(frozen=True, eq=False)
class Domains:
    """What is illegal and what is innocent in a guard or an attack, split by one seed; :meth:`read` makes it.

    Attributes:
        illegal, innocent: no picture is in both.
    """

    illegal: tuple[Domain, ...]
    innocent: tuple[Domain, ...]

    @classmethod
    def read(cls, illegal: Sequence[str], innocent: Sequence[str], model: Model, seed: int) -> "Domains":
        """Read them all.

        Args:
            illegal, innocent: names of bundled domains, or folders.
            model: whose size the pictures get.
            seed: which picture has which role.

        Raises:
            ConfigError, DataError: domains that do not exist or cannot be used (all are listed), or a picture in both.
        """
        found: list[Domain] = []
        wrong: list[UnteachError] = []
        for given in (*illegal, *innocent):
            try:
                found.append(Domain.read(given, model, seed))
            except UnteachError as error:
                wrong.append(error)
        if len(wrong) == 1:
            raise wrong[0]
        if wrong:
            raise DataError.many([str(error) for error in wrong], where="the pictures")
        bad, good = found[: len(illegal)], found[len(illegal) :]
        ids = [[(domain.name, set(domain.ids)) for domain in side] for side in (bad, good)]
        apart(ids[0], ids[1], "what is illegal must not be among what is innocent")
        return cls(tuple(bad), tuple(good))

    @property
    def every(self) -> tuple[Domain, ...]:
        """All of them, the illegal first."""
        return (*self.illegal, *self.innocent)

    def learned(self, model: Model) -> dict[str, list[Examples]]:
        """The sets that a mask is learned from: "illegal user", "illegal publisher", "innocent user" and so on."""
        return {
            f"{kind} {role}": [domain.examples(model, role) for domain in side]
            for kind, side in (("illegal", self.illegal), ("innocent", self.innocent))
            for role in SIDES["mask"]
        }


def digests(sets: Mapping[str, Sequence[Examples]]) -> dict[str, str]:
    """Name of several sets → digest of them all."""
    return {name: state.fingerprint([part.digest() for part in parts]) for name, parts in sets.items()}


def apart(first: Iterable[tuple[str, set[str]]], second: Iterable[tuple[str, set[str]]], why: str) -> None:
    """Refuse (name, hashes of pictures) of ``first`` that share a picture with one of ``second``.

    Raises:
        DataError: lists every pair.
    """
    others = list(second)
    problems = [
        f"{len(a & b)} of the pictures of {name} are in {other} too"
        for name, a in first
        for other, b in others
        if a & b
    ]
    if problems:
        raise DataError(why, found="; ".join(problems), fix="take them out of one of the folders")


def rest(model: Model, without: Sequence[str] = ()) -> Examples:
    """Pictures of the bundled model's own concepts, in views that it was not trained on: what else an attack does.

    Args:
        model: the bundled one.
        without: objects and styles to leave out, such as those that were erased.
    """
    grid = emoji.grid()
    objects, styles = grid.pairs()
    skip = set(without)
    kept = [
        row
        for row in seeds.permutation(len(objects), 0, "probe of everything else").tolist()
        if not skip & {*grid.objects[int(objects[row])].names, grid.styles[int(styles[row])]}
    ][:REST_PICTURES]
    rows = torch.tensor(kept, dtype=torch.int64)
    images = grid.views(objects[rows], styles[rows], seeds.generator(0, "views of everything else"))
    canonical = emoji.draw(grid.icons[objects[rows], styles[rows]])
    named = [(grid.objects[int(objects[row])].name, grid.styles[int(styles[row])]) for row in kept]
    texts = [emoji.caption(emoji.TRAIN_TEMPLATES[0], name, style) for name, style in named]
    return encoded(model, REST, images, texts, _hashes(canonical))


def _hashes(images: Tensor) -> tuple[str, ...]:
    pixels = (images * 255).round().to(torch.uint8)
    return tuple(hashlib.sha256(picture.numpy().tobytes()).hexdigest()[:32] for picture in pixels)


def _halves(ids: Sequence[str], seed: int) -> dict[str, list[str]]:
    """The hashes of each side, in random order; it depends on the pictures alone, not on names or their order."""
    names = sorted(set(ids))
    order = [names[i] for i in seeds.permutation(len(names), seed, "sides of a domain").tolist()]
    return {"mask": order[: len(order) // 2], "attack": order[len(order) // 2 :]}


def _rows(ids: Sequence[str], chosen: Sequence[str]) -> tuple[int, ...]:
    """Rows of the chosen hashes, in their order."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        places.setdefault(name, []).append(row)
    return tuple(row for name in chosen for row in places[name])


def _by_icon(ids: Sequence[str], seed: int) -> dict[str, tuple[int, ...]]:
    halves = _halves(ids, seed)
    return {role: _rows(ids, halves[side]) for side, roles in SIDES.items() for role in roles}


def _by_picture(ids: Sequence[str], seed: int, given: str) -> dict[str, tuple[int, ...]]:
    found = {}
    for side, names in _halves(ids, seed).items():
        if len(names) < 2:
            raise DataError(f"'{given}' needs at least four different pictures", found=f"{len(set(ids))}")
        first, second = SIDES[side]
        count = min(max(1, round(SHARES[first] * len(names))), len(names) - 1)
        found[first], found[second] = _rows(ids, names[:count]), _rows(ids, names[count:])
    return found
