import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.evaluate.worlds import NAMES, STYLES, WORLD, NearestMean
from torch import Tensor

from unteach.core.seeds import integer
from unteach.data.concepts import Concept, ConceptSet
from unteach.diffusion import Model, sample
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import weights_digest
from unteach.errors import CheckpointError, ConfigError, DataError
from unteach.evaluate import Protocol, Results, evaluate_canvas
from unteach.evaluate.prompts import SETS, UNLEARNING, asks

NOTO = Concept(target="noto", anchor="mono", kind="style")
DOG = Concept(target="dog", anchor="cat")
SMALL = Protocol(name="small", target=2, retained=3)
STEPS = {"num_inference_steps": 2, "batch_size": 8}


def run(model: Model, delta: WeightDelta | None, judge: NearestMean, **more: object) -> Results:
    settings: dict[str, object] = {"world": WORLD, "preset": SMALL, **STEPS, **more}
    return evaluate_canvas(model, delta, settings.pop("concepts", NOTO), {"mean": judge}, **settings)  # type: ignore[arg-type]


def pictures(model: Model, prompts: list[str], seed: int) -> Tensor:
    seeds = [integer(seed, "evaluate", prompt) for prompt in prompts]
    images = sample(model, prompts, seeds, num_inference_steps=2)
    return (images * 255).round() / 255


def test_the_numbers_are_what_the_judge_says(model: Model, delta: WeightDelta, judge: NearestMean) -> None:
    before_run = weights_digest(model.denoiser)
    results = run(model, delta, judge)
    assert weights_digest(model.denoiser) == before_run
    mine = [a for a in asks(WORLD, [NOTO], SMALL) if a.set == UNLEARNING]
    prompts = [a.prompt for a in mine]
    old = pictures(model, prompts, 188)
    with delta.apply(model):
        new = pictures(model, prompts, 188)
    assert not torch.equal(old, new)
    for when, images in (("before", old), ("after", new)):
        objects, styles = judge(images)
        gone = [int(styles[i]) != 1 for i, a in enumerate(mine) if a.style == 1]
        kept = [(int(objects[i]), int(styles[i])) == (a.object, a.style) for i, a in enumerate(mine) if a.style != 1]
        (ua,) = results.find("UA", prompts=UNLEARNING, when=when, concept="noto")
        (rest,) = results.find("kept", prompts=UNLEARNING, when=when, concept="noto")
        assert (ua.value, ua.n) == (pytest.approx(sum(gone) / len(gone)), len(gone))
        assert (rest.value, rest.n) == (pytest.approx(sum(kept) / len(kept)), len(kept))
    retained = torch.tensor([a.style != 1 for a in mine])
    (moved,) = results.find("pixel change", prompts=UNLEARNING)
    assert moved.value == pytest.approx(float((new - old)[retained].abs().mean()), rel=1e-4)
    assert {m.prompts for m in results.metrics} == set(SETS)
    kinds = [(t.kind, len(t.rows), len(t.columns)) for t in results.tables]
    assert kinds == [("kept", 3, 3), ("seen", 1, 4)]


def test_the_record_is_complete(model: Model, delta: WeightDelta, judge: NearestMean, tmp_path: Path) -> None:
    results = run(
        model,
        delta,
        judge,
        out=tmp_path,
        command="unteach evaluate",
        seeds=(1, 2),
        method_seconds=3.5,
        notes={"mean": "nearest mean"},
    )
    assert Results.load(tmp_path / "results.json") == results
    assert (results.method, results.protocol, results.status) == ("uce", "small", "complete")
    assert results.seeds == (1, 2) and results.command == "unteach evaluate"
    assert results.cost.method_seconds == 3.5 and results.cost.method_steps == 12
    assert results.cost.images == 2 * 2 * len(asks(WORLD, [NOTO], SMALL))
    assert results.cost.parameters_moved == delta.size and results.cost.delta_bytes == 4 * delta.size
    assert results.cost.peak_rss_bytes is None or results.cost.peak_rss_bytes > 10**7
    assert results.environment.torch == torch.__version__
    assert results.config["sampling"]["num_inference_steps"] == 2
    assert [(g.role, g.concept) for g in results.grids] == [("target", "noto")] * 3 + [("retained", "")] * 3
    for grid in results.grids:
        assert grid.rows == ("before", "after") and len(grid.captions) == len(grid.seeds) <= 12
        for path in (path for row in grid.images for path in row):
            with Image.open(tmp_path / path) as image:
                assert image.size == model.image_shape[:0:-1] and image.mode == "RGB"
    first = results.grids[0]
    shown = pictures(model, [first.captions[0]], 1)[0]
    with Image.open(tmp_path / first.images[0][0]) as image:
        assert image.getpixel((3, 5)) == tuple(round(float(v) * 255) for v in shown[:, 5, 3])
    assert first.seeds[0] == integer(1, "evaluate", first.captions[0])


def test_the_same_call_reads_what_is_finished(
    model: Model, delta: WeightDelta, judge: NearestMean, tmp_path: Path
) -> None:
    first = run(model, delta, judge, out=tmp_path / "run")
    again = run(model, delta, judge, out=tmp_path / "run")
    assert again == first and again.cost.seconds == first.cost.seconds
    with pytest.raises(CheckpointError, match=r"holds another evaluation.*seeds was"):
        run(model, delta, judge, out=tmp_path / "run", seeds=(7,))
    with pytest.raises(CheckpointError, match=r"sampling\."):
        run(model, delta, judge, out=tmp_path / "run", guidance_scale=1.0)


def test_interrupted_is_unbroken(model: Model, delta: WeightDelta, judge: NearestMean, tmp_path: Path) -> None:
    whole = run(model, delta, judge, out=tmp_path / "whole")

    class Impatient(NearestMean):
        def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, delta, Impatient(judge.means, judge.far), out=tmp_path / "broken")
    assert not (tmp_path / "broken" / "results.json").exists()
    chunks = sorted((tmp_path / "broken" / "after").rglob("*.safetensors"))
    stamps = {chunk: chunk.stat().st_mtime_ns for chunk in chunks[1:]}
    chunks[0].unlink()
    resumed = run(model, delta, judge, out=tmp_path / "broken")
    assert resumed.metrics == whole.metrics and resumed.grids == whole.grids
    assert {chunk: chunk.stat().st_mtime_ns for chunk in stamps} == stamps


def test_pictures_of_the_unchanged_model_are_shared(
    model: Model, delta: WeightDelta, judge: NearestMean, tmp_path: Path
) -> None:
    run(model, delta, judge, out=tmp_path / "noto", before=tmp_path / "shared", preset="grid")
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "shared").rglob("*.safetensors")}
    run(model, delta, judge, out=tmp_path / "dog", before=tmp_path / "shared", preset="grid", concepts=DOG)
    new = set((tmp_path / "shared").rglob("*.safetensors")) - set(stamps)
    assert stamps and all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    # what both ask for was not drawn again
    prompts = [{a.prompt for a in asks(WORLD, [c], _grid())} for c in (NOTO, DOG)]
    assert len(new) <= -(-len(prompts[1] - prompts[0]) // 8) < -(-len(prompts[1]) // 8)
    assert not (tmp_path / "noto" / "before").exists()


def _grid() -> Protocol:
    return Protocol(name="grid", target=40, retained=None)


def test_a_control_compares_the_model_with_itself(model: Model, judge: NearestMean) -> None:
    results = run(model, None, judge)
    assert {m.value for m in results.metrics if m.when == "change" and m.p is not None} == {0.0}
    assert {m.value for m in results.find("pixel change")} == {0.0}
    assert {m.value for m in results.find("same verdict")} == {1.0}
    assert results.method == "" and results.cost.parameters_moved == 0 and results.grids == ()


def test_strength_zero_is_the_control(model: Model, delta: WeightDelta, judge: NearestMean) -> None:
    assert run(model, delta, judge, scale=0.0).metrics == run(model, None, judge).metrics


def test_two_concepts_and_two_judges(model: Model, delta: WeightDelta, judge: NearestMean, tmp_path: Path) -> None:
    blind = dataclasses.replace(SMALL, name="two")
    results = evaluate_canvas(
        model,
        delta,
        ConceptSet([NOTO, DOG]),
        {"mean": judge, "blind": NearestMean(judge.means, far=0.0)},
        world=WORLD,
        preset=blind,
        out=tmp_path,
        num_inference_steps=2,
        batch_size=16,
    )
    assert [c.target for c in results.concepts] == ["noto", "dog"]
    for concept in ("noto", "dog"):
        (ua,) = results.find("UA", judge="blind", concept=concept, prompts=UNLEARNING, when="before")
        assert ua.value == 1.0  # who says "none" to everything sees nothing of the concept, either
        (none,) = results.find("none on rest", judge="blind", concept=concept, prompts=UNLEARNING, when="after")
        assert none.value == 1.0
    rest = {m.n for m in results.metrics if m.name == "IRA" and m.prompts == UNLEARNING}
    assert rest == {3}  # the rest asks for neither concept
    assert [g.concept for g in results.grids] == ["noto"] * 3 + ["dog"] * 3 + [""] * 3
    assert [(t.kind, t.concept, t.judge) for t in results.tables][:3] == [
        ("kept", "noto", "mean"),
        ("seen", "noto", "mean"),
        ("kept", "noto", "blind"),
    ]


def test_settings_are_checked_together(model: Model, judge: NearestMean) -> None:
    with pytest.raises(ConfigError, match=r"3 mistakes(.|\n)*no concept(.|\n)*no judge(.|\n)*\[1, 1\]"):
        evaluate_canvas(model, None, (), {}, world=WORLD, seeds=(1, 1))
    with pytest.raises(ConfigError, match="no evaluation protocol"):
        run(model, None, judge, preset="dmeo")


class Wild:
    """A judge that answers out of range."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(images)), torch.full((len(images),), self.index)


@pytest.mark.parametrize("index", [-1, len(STYLES) + 1])
def test_a_judge_answers_in_range(model: Model, index: int) -> None:
    with pytest.raises(DataError, match=f"judge 'wild' must give one index between 0 and {len(STYLES)}"):
        evaluate_canvas(model, None, NOTO, {"wild": Wild(index)}, world=WORLD, preset=SMALL, num_inference_steps=2)


def test_the_judge_of_the_tests_can_tell(model: Model, judge: NearestMean) -> None:
    means = judge.means.unflatten(1, model.image_shape)
    objects, styles = judge(means)
    assert objects.tolist() == [o for o in range(len(NAMES)) for _ in STYLES]
    assert styles.tolist() == [s for _ in NAMES for s in range(len(STYLES))]
