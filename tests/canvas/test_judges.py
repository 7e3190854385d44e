"""The bundled judges: right on real pictures, "none" on negatives, and files that are whole or refused."""

from pathlib import Path

import pytest
import torch
from tools.canvas.negatives import NO_OBJECT, NO_STYLE
from tools.canvas.train_judges import measure, soften

from tools.canvas import negatives
from unteach.canvas import model_path
from unteach.canvas.judges import judges, load, save
from unteach.canvas.nets import Measurements
from unteach.core import seeds, state
from unteach.data.emoji import grid
from unteach.errors import CheckpointError, DataError

NAMES = ("cnn", "patch")
_TABLES: dict[str, dict[str, dict[str, float]]] = {}


def table(name: str) -> dict[str, dict[str, float]]:
    """Measured once a session, on other draws than the ones that the file's own figures come from."""
    if name not in _TABLES:
        _TABLES[name] = measure(judges()[name], per_pair=1, seed=5)
    return _TABLES[name]


def test_the_bundled_judges() -> None:
    assert tuple(judges()) == NAMES
    assert judges() is judges()
    for name in NAMES:
        file = model_path() / "judges" / f"{name}.safetensors"
        assert file.stat().st_size <= 1.5e6
        line = judges()[name].describe()
        assert line.startswith(f"{name}: ") and "\n" not in line and "object 0.99" in line.replace("1.000", "0.999")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("views", "objects", "styles"),
    [("weak views", 0.99, 0.985), ("strong views", 0.97, 0.95), ("soft views", 0.97, 0.95)],
)
@pytest.mark.parametrize("name", NAMES)
def test_right_on_fresh_views(name: str, views: str, objects: float, styles: float) -> None:
    row = table(name)[views]
    assert row["n"] == 480
    assert row["object"] >= objects
    assert row["style"] >= styles


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*negatives.TRAINED, *negatives.UNSEEN])
@pytest.mark.parametrize("name", NAMES)
def test_no_object_in_negatives(name: str, kind: str) -> None:
    # Halves still hold half of a real drawing, which a judge may name with some right.
    assert table(name)[kind]["object"] >= (0.8 if kind == "halves" else 0.9)


@pytest.mark.parametrize("name", NAMES)
def test_measured_figures_in_the_file_are_repeatable(name: str) -> None:
    stored = judges()[name].meta["measured"]["weak views"]
    again = measure(judges()[name], ["weak views"])["weak views"]
    # A picture or two may tip over on another machine's arithmetic.
    assert again["object"] == pytest.approx(stored["object"], abs=0.003)
    assert again["style"] == pytest.approx(stored["style"], abs=0.003)


@pytest.mark.parametrize("name", NAMES)
def test_judging_does_not_depend_on_the_batch(name: str) -> None:
    judge = judges()[name]
    images = grid().views(*grid().pairs())
    objects, styles = judge(images)
    assert objects.dtype == styles.dtype == torch.int64
    assert objects.shape == styles.shape == (480,)
    few = judge(images[250:262])
    assert torch.equal(few[0], objects[250:262])
    assert torch.equal(few[1], styles[250:262])
    assert [len(part) for part in judge(images[:0])] == [0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_probabilities(name: str) -> None:
    judge = judges()[name]
    images = grid().views(*(t[::9] for t in grid().pairs())).requires_grad_()
    objects, styles = judge.probabilities(images)
    assert objects.shape == (54, NO_OBJECT + 1)
    assert styles.shape == (54, NO_STYLE + 1)
    assert not objects.requires_grad
    for part, said in zip((objects, styles), judge(images), strict=True):
        assert torch.allclose(part.sum(dim=1), torch.ones(54), atol=1e-5)
        assert torch.equal(part.argmax(dim=1), said)
    assert not any(p.requires_grad for p in judge.net.parameters())
    assert not judge.net.training


def test_a_picture_that_is_not_finite_shows_nothing() -> None:
    images = grid().views(*(t[:4] for t in grid().pairs()))
    whole = judges()["cnn"](images)
    images[1, 0, 3, 3] = torch.nan
    images[2, 2, 0, 0] = torch.inf
    objects, styles = judges()["cnn"](images)
    assert objects.tolist() == [int(whole[0][0]), NO_OBJECT, NO_OBJECT, int(whole[0][3])]
    assert styles.tolist() == [int(whole[1][0]), NO_STYLE, NO_STYLE, int(whole[1][3])]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 64, 64), (2, 1, 32, 32)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="shape"):
        judges()["cnn"](torch.zeros(shape))


def test_bytes_are_refused() -> None:
    with pytest.raises(DataError, match="255"):
        judges()["cnn"](torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_save_and_load(tmp_path: Path) -> None:
    judge = judges()["patch"]
    again = load(save(tmp_path / "x.safetensors", "patch", judge.net, recipe={"steps": 1}))
    images = grid().views(*(t[::40] for t in grid().pairs()))
    for a, b in zip(judge.probabilities(images), again.probabilities(images), strict=True):
        assert torch.equal(a, b)
    assert again.meta["recipe"] == {"steps": 1}
    assert "right on" not in again.describe()


def test_files_that_are_refused(tmp_path: Path) -> None:
    tensors, meta = state.load(model_path() / "judges" / "cnn.safetensors")
    path = tmp_path / "x.safetensors"
    for change, message in (
        ({"version": 99}, "newer version"),
        ({"network": "oracle"}, "not a judge of this version"),
        ({"classes": {"objects": ["yeti"], "styles": []}}, "other objects or styles"),
        ({"network": "patch"}, "does not fit the network"),
    ):
        state.save(path, tensors, {**meta, **change})
        with pytest.raises(CheckpointError, match=message):
            load(path)
    path.write_bytes((model_path() / "judges" / "cnn.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


@pytest.mark.slow
def test_the_judges_are_independent() -> None:
    """Where one errs on hard pictures, the other is mostly right: they do not share their mistakes."""
    objects, styles = (t.repeat(3) for t in grid().pairs())
    images = grid().views(objects, styles, seeds.generator(9, "hard"), strong=True)
    images = soften(soften(images, 1.0), 1.0)
    wrong = [judges()[name](images)[1] != styles for name in NAMES]
    both, either = (wrong[0] & wrong[1]).float().mean(), (wrong[0] | wrong[1]).float().mean()
    assert float(either) > 0
    assert float(both) < 0.5 * float(either)


def test_measurements_tell_direction_and_colour() -> None:
    bank = Measurements()
    edge = torch.zeros(1, 3, 32, 32)
    edge[..., 16:] = 1
    tables = [
        bank(x) for x in (edge, edge.flip(3), edge.transpose(2, 3), edge * torch.tensor([1.0, 0, 0])[:, None, None])
    ]
    assert all(t.shape == (1, bank.size) and bool(torch.isfinite(t).all()) for t in tables)
    assert all(float((tables[0] - t).abs().max()) > 0.2 for t in tables[1:])
    assert not list(bank.parameters())
