"""``unteach guard`` and ``unteach attack`` from end to end on the bundled model, with as little training as can be."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests import toys
from tests.guard.checkpoints import flip

from unteach.canvas import model_path
from unteach.cli import main
from unteach.commands.guard import CANVAS_SETTINGS
from unteach.core import state
from unteach.data import emoji
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.domains import Domain, available, rest
from unteach.diffusion.examples import disjoint
from unteach.diffusion.model import Model, load
from unteach.errors import DataError
from unteach.guard.manifest import FreezeManifest, stamped
from unteach.guard.methods import guards
from unteach.guard.verify.reader import Safetensors
from unteach.records.attack import Relearning, check_same
from unteach.records.mask import Mask

UNET = "unet/diffusion_pytorch_model.safetensors"
QUICK = ["steps=2", "relearn_steps=2", "batch_size=2", "scale=raw", "rho=0.2", "relearned=last"]
SHORT = ["--steps", "1", "2", "--batch-size", "2", "--draws", "1"]


def pictures(folder: Path, rows: range, objects: str = "instruments", prefix: str = "") -> Path:
    """A folder of captioned pictures: canonical views of bundled icons."""
    domain = emoji.adaptation()[objects]
    images = (emoji.draw(domain.icons[list(rows)]) * 255).round().to(torch.uint8)
    folder.mkdir(parents=True)
    lines = []
    for row, image in zip(rows, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{prefix}{row}.png")
        lines.append(json.dumps({"file_name": f"{prefix}{row}.png", "text": domain.captions()[row]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def canvas() -> Model:
    return load(model_path())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of pictures, an erasure, the mask that was learned from them, keys, and the published model."""
    folder = tmp_path_factory.mktemp("guard")
    bad, good = pictures(folder / "bad", range(0, 8)), pictures(folder / "good", range(8, 16))
    erase = ["erase", "--target", "twemoji", "--anchor", "openmoji", "--kind", "style", "--method", "uce"]
    assert main([*erase, "--out", str(folder / "erased")]) == 0
    learn = ["--illegal", str(bad), "--innocent", str(good), "--erased", str(folder / "erased"), "--set", *QUICK]
    assert main(["guard", "learn", *learn, "--policy", "no-guitars", "--out", str(folder / "mask")]) == 0
    assert main(["guard", "keygen", "--out", str(folder / "keys")]) == 0
    key = ["--key", str(folder / "keys" / "guard-private.pem")]
    assert main(["guard", "apply", str(folder / "mask"), "--out", str(folder / "published"), *key]) == 0
    return folder


def verify(place: Path, candidate: Path, *more: str, manifest: Path | None = None) -> int:
    """Exactly the command of docs/guard-verify.md."""
    policy = manifest or place / "published" / "unet" / "manifest.json"
    return main(["guard", "verify", str(place / "published"), str(candidate), "--manifest", str(policy), *more])


# learn


def test_the_mask_the_manifest_and_the_published_model_belong_together(place: Path) -> None:
    record, manifest = Mask.load(place / "mask" / "mask.json"), FreezeManifest.load(place / "mask/manifest.json")
    assert sorted(p.name for p in (place / "mask").iterdir()) == [
        "config.json",
        "cost.json",
        "manifest.json",
        "mask.json",
    ]
    assert Mask.load(place / "mask") == record and FreezeManifest.of(record.manifest) == manifest
    assert len(record.frozen) == 57 and record.steps == 2 and record.method["batch_size"] == 2  # floor(0.2 · 286)
    assert (manifest.illegal, manifest.innocent) == (("bad",), ("good",)) and record.model_name == "canvas"
    assert record.command.startswith("unteach guard learn --illegal") and record.environment["torch"]
    assert manifest.policy == "no-guitars" and manifest.provenance.method["erased"]["targets"] == ["twemoji"]
    # The erasure is in what is published, and the digest is of that.
    published, plain = load(place / "published"), load(model_path())
    assert published.digest() == manifest.model != plain.digest()
    WeightDelta.load(place / "erased" / "delta.safetensors").apply(plain)
    tensors = {name: value.half().float() for name, value in plain.denoiser.state_dict().items()}  # as its files are
    assert all(torch.equal(value, tensors[name]) for name, value in published.denoiser.state_dict().items())
    with Safetensors(place / "published" / UNET) as file:
        assert stamped(file.metadata) == manifest.digest()
    assert FreezeManifest.load(place / "published/unet/manifest.json") == manifest
    # No path of this machine is in anything that would be published.
    shared = [place / "mask" / "manifest.json", *(place / "published").rglob("*.json")]
    assert not any(str(place) in path.read_text() for path in shared)


def test_the_same_command_is_finished_and_another_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = place / "mask" / "config.json", place / "mask"
    before = files(out)
    assert main(["guard", "learn", "--config", str(config), "--out", str(out)]) == 0
    assert "holds the finished mask" in capsys.readouterr().out and files(out) == before
    for other, difference in (
        (["--set", "rho=0.3"], "settings.rho was 0.2, is now 0.3"),
        (["--seed", "4"], "seed was 0, is now 4"),
        (["--innocent", "digits"], "good'], is now ['digits']"),
        (["--method", "random"], "method was 'freezeasguard', is now 'random'"),
    ):
        assert main(["guard", "learn", "--config", str(config), "--out", str(out), *other]) == 2
        said = capsys.readouterr().err
        assert "holds another run" in said and difference in said and files(out) == before
    # Without the erasure the weights are others.
    plain = ["--illegal", str(place / "bad"), "--innocent", str(place / "good"), "--set", *QUICK]
    assert main(["guard", "learn", *plain, "--policy", "no-guitars", "--out", str(out)]) == 2
    assert "other weights" in capsys.readouterr().err and files(out) == before
    # As after an interruption: it goes on, and ends the same.
    begun = place / "begun"
    begun.mkdir()
    shutil.copy(config, begun)
    assert main(["guard", "learn", "--config", str(config), "--out", str(begun)]) == 0
    assert "begun: its relearning goes on" in capsys.readouterr().out
    first, second = (Mask.load(folder / "mask.json") for folder in (out, begun))
    assert (first.tensors, first.log) == (second.tensors, second.log)
    # A manifest that was lost is written again, and is the same.
    lost = place / "lost"
    shutil.copytree(out, lost)
    (lost / "manifest.json").unlink()
    assert main(["guard", "learn", "--config", str(config), "--out", str(lost)]) == 0
    old, new = (state.read_json(folder / "manifest.json") for folder in (out, lost))
    assert old == new


@pytest.mark.parametrize("method", ["random-matched", "magnitude", "official", "cross-attention-kv"])
def test_other_masks(
    method: str, place: Path, canvas: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "random-matched": QUICK,
        "magnitude": ["relearn_steps=2", "batch_size=2", "rho=0.1", "relearned=last"],
        "official": ["steps=6", "relearn_steps=1", "batch_size=2", "scale=raw"],
        "cross-attention-kv": ["rho=0.5", "budget=parameters"],
    }[method]
    names = ["--illegal", str(place / "bad"), "--innocent", str(place / "good"), "--method", method]
    assert main(["guard", "learn", *names, "--set", *settings, "--out", str(tmp_path)]) == 0
    record = Mask.load(tmp_path / "mask.json")
    manifest = FreezeManifest.load(tmp_path / "manifest.json")
    assert record.name == method and manifest.model == canvas.digest()
    assert (record.budget.rho is None) == (method == "random-matched") and bool(record.log) == (method == "official")
    assert manifest.budget.frozen_tensors == {"random-matched": 57, "magnitude": 28}.get(method, len(record.frozen))
    if method == "cross-attention-kv":
        assert 0.4 < manifest.budget.share_of_parameters <= 0.5 and "no training is needed" in capsys.readouterr().out
        assert set(canvas.cross_attention_kv()) <= set(record.frozen)


def test_dry_run_writes_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["guard", "learn", "--illegal", "instruments", "--innocent", str(place / "good")]
    assert main([*command[:-1], "emojione-v1", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    config = guards.make("freezeasguard", **CANVAS_SETTINGS)
    steps = config.relearn_steps + config.steps
    assert (
        f"286 tensors to choose from; at most {steps} training steps: about" in said and "nothing was written" in said
    )
    assert "instruments  illegal   32    32         32      32" in said and list(tmp_path.iterdir()) == []
    # "good" are eight of the instruments: the same pictures under other names.
    assert main([*command, "--dry-run"]) == 2
    assert "8 of the pictures of instruments are in good too" in capsys.readouterr().err


def test_all_mistakes_are_listed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text("seed: one\nrho: 0.2\n")
    wrong = ["--illegal", "fxemojj", str(tmp_path / "empty"), "--erased", str(tmp_path / "empty"), "--seed", "-1"]
    assert main(["guard", "learn", *wrong, "--set", "rho=2", "stepz=3", "--config", str(file), "--threads", "0"]) == 2
    said = capsys.readouterr().err
    for words in (
        "did you mean 'fxemoji'?", "no metadata.jsonl", "no finished erasure", "seed must be at least 0",
        "rho must be at most 1", "unknown setting 'stepz'", "seed must be a whole number, found 'one'",
        "unknown key 'rho'", "threads must be at least 1", "no innocent domain was given", "add --out DIR",
    ):  # fmt: skip
        assert words in said, words
    assert main(["guard", "learn", "--illegal", "fxemoji", "--innocent", "digits", "--method", "magnitud"]) == 2
    assert "did you mean 'magnitude'?" in capsys.readouterr().err
    assert main(["guard", "learn", "--illegal", "a/digits", "--method", "random", "--set", "steps=3"]) == 2
    assert "the guard 'random': unknown setting 'steps'" in capsys.readouterr().err
    # Nothing of that is left.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "empty"]


# keygen, apply, show, verify


def test_keys_are_never_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(place / "keys")
    assert main(["guard", "keygen", "--out", str(place / "keys")]) == 2
    assert "never overwritten" in capsys.readouterr().err and files(place / "keys") == before
    assert (place / "keys" / "guard-private.pem").stat().st_mode & 0o777 == 0o600


def test_a_failed_apply_leaves_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask, out = tmp_path / "mask", tmp_path / "out"
    shutil.copytree(place / "mask", mask)
    content = state.read_json(mask / "mask.json")
    content["manifest"]["components"]["vae"] = "0" * 64  # seen when everything is written: the folder does not verify
    state.write_json(mask / "mask.json", content)
    assert main(["guard", "apply", str(mask), "--out", str(out)]) == 2
    assert "do not belong together" in capsys.readouterr().err  # manifest.json says another
    (mask / "manifest.json").unlink()
    assert main(["guard", "apply", str(mask), "--out", str(out)]) == 2
    assert "not of this base: its 'vae'" in capsys.readouterr().err and list(tmp_path.iterdir()) == [mask]
    assert main(["guard", "apply", str(mask), "--out", str(mask), "--key", str(place / "keys/none.pem")]) == 2
    said = capsys.readouterr().err
    assert "exists and is not empty" in said and "none.pem" in said
    # Other weights than the mask's: nothing is begun.
    plain = state.read_json(mask / "config.json")
    plain.pop("erased")
    state.write_json(mask / "config.json", plain)
    assert main(["guard", "apply", str(mask), "--out", str(out)]) == 2
    assert "other weights" in capsys.readouterr().err and list(tmp_path.iterdir()) == [mask]


def test_show(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for what in ("mask", "mask/manifest.json", "published"):
        assert main(["guard", "show", str(place / what)]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    assert "policy no-guitars: 57 of 286 tensors (19.9%) and" in shown[0] and "of the parameters are frozen" in shown[0]
    assert "up_blocks.1" in shown[0] and "cross-attention weight" in shown[0] and "twemoji" in shown[0]
    manifest = FreezeManifest.load(place / "mask" / "manifest.json")
    scores = {tensor.name: tensor.score for tensor in manifest.tensors}
    assert f"{max(v for v in scores.values() if v is not None):.4f}  frozen  " in shown[0]
    rows = [
        line.split() for line in shown[0].splitlines() if line.startswith(("  down_blocks", "  up_blocks", "  mid"))
    ]
    total = sum(t.frozen for t in manifest.tensors if t.name.startswith(("down", "up", "mid")))
    assert len(rows) == 5 and sum(int(row[1]) for row in rows) == total
    assert main(["guard", "show", str(place)]) == 2


def test_verify_tells_conform_violates_undecidable_and_no_verdict_apart(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, signature = place / "published", place / "published" / "unet" / "manifest.json.sig"
    signed = ["--signature", str(signature), "--public-key", str(place / "keys" / "guard-public.pem")]
    assert verify(place, published, *signed) == 0
    said = capsys.readouterr().out
    assert said.startswith("CONFORM") and "57 as fp16" in said and "signature: key" in said
    assert verify(place, published) == 0 and "NOT CHECKED" in capsys.readouterr().out
    assert verify(place, published, "--json", *signed) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["outcome"], verdict["exit_code"], verdict["policy"]) == ("conform", 0, "no-guitars")

    frozen = FreezeManifest.load(place / "mask" / "manifest.json").frozen
    tensors = load_file(published / UNET)
    flip(tensors[frozen[3]], 0, 1)
    state.save(tmp_path / "flipped.safetensors", tensors, {})
    assert verify(place, tmp_path / "flipped.safetensors", *signed) == 1
    assert frozen[3] in capsys.readouterr().out
    assert verify(place, tmp_path / "flipped.safetensors", "--json") == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["tensor"] == frozen[3]

    pickled = tmp_path / "pickled"
    shutil.copytree(published, pickled)
    (pickled / "unet" / "more.bin").write_bytes(b"x")
    assert verify(place, pickled, *signed) == 3 and "UNDECIDABLE" in capsys.readouterr().out

    forged = state.read_json(signature)
    forged["signature"] = "00" * 64
    path = state.write_json(tmp_path / "forged.sig", forged)
    assert verify(place, published, "--signature", str(path), *signed[2:]) == 2
    assert "forged" in capsys.readouterr().err
    assert verify(place, published, "--signature", str(signature)) == 2 and "give both" in capsys.readouterr().err
    assert verify(place, published, manifest=place / "mask" / "mask.json") == 2
    assert "not a file of the format unteach-freeze-manifest" in capsys.readouterr().err


def test_verify_into_a_closed_pipe_still_exits_with_the_verdict(place: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickle.bin"
    pickled.write_bytes(b"x")
    arguments = [str(place / "published"), str(pickled), "--manifest", str(place / "mask" / "manifest.json")]
    code = f"import sys; from unteach.cli import main; sys.exit(main(['guard', 'verify', *{arguments!r}]))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == 3


# attack


def attack(out: Path, *more: str) -> list[str]:
    return ["attack", "relearn", *SHORT, "--out", str(out), *more]


@pytest.mark.slow
def test_an_attack_is_measured_resumes_and_grows(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mask = tmp_path / "attack", ["--guard", str(place / "mask")]
    other = pictures(tmp_path / "other", range(4), "digits")
    names = ["--illegal", str(place / "bad"), "--innocent", str(place / "good"), str(other)]
    assert main(attack(out, *mask, *names)) == 0
    said = capsys.readouterr().out
    assert "bad (illegal)" in said and "freezeasguard, kept" in said and "recovered" in said
    found = Relearning.load(out)  # as the report reads it
    check_same(Mask.load(place / "mask"), found)
    assert [(d.name, d.role) for d in found.domains] == [("bad", "illegal"), ("good", "innocent"), ("other", "unseen")]
    assert found.probes == ("bad", "good", "other", "canvas") and len(found.records) == 6
    assert found.mask is not None and (found.mask.tensors, found.mask.of) == (57, 286)
    assert all(r.at == (0, 1, 2) and r.batch_size == 2 for r in found.records)
    assert [r.mask for r in found.records if r.domain == "bad"] == ["unprotected", "freezeasguard"]

    # A cell that is lost is made again with the same numbers; the others are only read.
    cells = {path: path.stat().st_mtime_ns for path in sorted((out / "cells").iterdir())}
    before = state.read_json(out / "relearning.json")
    lost = next(iter(cells))
    old = state.read_json(lost)
    lost.unlink()
    (out / "relearning.json").unlink()
    assert main(attack(out, *mask, *names)) == 0 and "going on" in capsys.readouterr().out
    assert {path for path in cells if path.stat().st_mtime_ns != cells[path]} == {lost}
    assert {**state.read_json(lost)["curve"], "seconds": 0} == {**old["curve"], "seconds": 0}
    after = state.read_json(out / "relearning.json")
    for record in (*before["records"], *after["records"]):
        record.pop("seconds")
    assert before == after

    # More of the same may be asked, something else not.
    assert main(attack(out, *mask, *names, "--ignore")) == 0
    assert len(Relearning.load(out).records) == 3 * 3 and len(list((out / "cells").iterdir())) == 3 * 3
    capsys.readouterr()
    for more in (["--draws", "2"], ["--rank", "2"]):
        assert main([*attack(out, *mask, *names), *more]) == 2
        assert "holds another run" in capsys.readouterr().err


def test_who_ignores_the_mask_is_the_unprotected_attacker(place: Path, tmp_path: Path) -> None:
    mask = ["--manifest", str(place / "published/unet/manifest.json"), "--model", str(place / "published")]
    more = ["--illegal", str(place / "bad"), "--ignore", "--modes", "full", "lora"]
    assert main(attack(tmp_path, *mask, *more)) == 0
    found = Relearning.load(tmp_path)
    for mode in ("full", "lora"):
        free, kept, ignored = (r for r in found.records if r.mode == mode)
        assert (free.arm, kept.arm, ignored.arm) == ("unprotected", "kept", "ignored")
        assert free.losses == ignored.losses != kept.losses
        assert free.losses["bad"][0] == kept.losses["bad"][0]
    assert found.model.name == "published" and found.probes == ("bad",)


def test_no_attack_on_what_the_mask_was_learned_from(
    place: Path, canvas: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = Domain.read(str(place / "bad"), canvas, 0)
    rows = [row for row, name in enumerate(domain.ids) if name in domain.side("mask")]
    assert len(rows) == 4
    # The same pictures, under other names and in another folder, with others among them.
    again = pictures(tmp_path / "mine", range(16, 20), prefix="x")
    with (again / "metadata.jsonl").open("a") as file:
        for row in rows:
            shutil.copy(place / "bad" / f"{row}.png", again / f"other {row}.png")
            file.write("\n" + json.dumps({"file_name": f"other {row}.png", "text": "something else"}))
    out = tmp_path / "out"
    assert main(attack(out, "--guard", str(place / "mask"), "--illegal", str(again))) == 2
    said = capsys.readouterr().err
    assert "pictures that the mask was learned from" in said and "mine are in bad (the mask's)" in said
    assert not out.exists()
    # The whole folder of the mask is fine: its other half was kept for this. So is a copy of it, under any name.
    copied = tmp_path / "copied"
    shutil.copytree(place / "bad", copied)
    twin = Domain.read(str(copied), canvas, 0)
    assert twin.side("attack") == domain.side("attack") and twin.side("mask") == domain.side("mask")
    # Pictures that changed after the mask was learned cannot be told apart any more.
    moved = tmp_path / "moved"
    shutil.copytree(place / "mask", moved)
    config = state.read_json(moved / "config.json")
    changed = tmp_path / "bad"
    shutil.copytree(place / "bad", changed)
    shutil.copy(changed / f"{rows[0]}.png", changed / f"{rows[1]}.png")
    state.write_json(moved / "config.json", {**config, "illegal": [str(changed)]})
    assert main(attack(out, "--guard", str(moved), "--illegal", "digits")) == 2
    assert "they changed since" in capsys.readouterr().err and not out.exists()


def test_attack_lists_all_mistakes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--steps", "0", "5", "--rates", "-1", "--seeds", "1", "1", "--draws", "0", "--innocent", "emojione"]
    both = ["--guard", str(tmp_path), "--manifest", str(place / "mask" / "manifest.json")]
    assert main(["attack", "relearn", *wrong, *both]) == 2
    said = capsys.readouterr().err
    for words in (
        "steps must be at least 1", "rates must be above 0", "seeds must be different", "draws must be at least 1",
        "did you mean 'emojione-v1'", "not both", "add --illegal", "add --out DIR",
    ):  # fmt: skip
        assert words in said, words
    assert main(attack(tmp_path / "out", "--ignore", "--illegal", "digits")) == 2
    assert "--ignore is about a mask" in capsys.readouterr().err
    assert main(attack(tmp_path / "out", "--guard", str(tmp_path), "--illegal", "digits")) == 2
    assert "no finished mask" in capsys.readouterr().err
    assert (
        main(attack(tmp_path / "out", "--guard", str(place / "mask"), "--erased", "none", "--illegal", "digits")) == 2
    )
    assert "there is no erasure 'none'" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


# domains


def test_no_picture_has_two_roles(place: Path, canvas: Model) -> None:
    folder = Domain.read(str(place / "bad"), canvas, 0)
    assert sorted(row for rows in folder.roles.values() for row in rows) == list(range(8))
    assert {role: len(rows) for role, rows in folder.roles.items()} == dict.fromkeys(folder.roles, 2)
    sets = [folder.examples(canvas, role) for role in folder.roles]
    disjoint(*sets)
    assert Domain.read(str(place / "bad"), canvas, 1).roles != folder.roles
    for name, count in available().items():
        icons = Domain.read(name, canvas, 0)
        assert len(icons.ids) == count and not icons.side("mask") & icons.side("attack")
        assert len(icons.side("mask") | icons.side("attack")) == count
        assert set(icons.roles["user"]) == set(icons.roles["publisher"])  # other views of them, see below
    sets = [icons.examples(canvas, role) for role in icons.roles]
    disjoint(*sets)
    assert len(sets[3]) == 64 and len(sets[0]) == 3 * 160
    for a, b in ((0, 1), (2, 3)):
        assert not {tuple(x.flatten().tolist()) for x in sets[a].latents} & {
            tuple(x.flatten().tolist()) for x in sets[b].latents
        }


def test_the_probe_of_everything_else_leaves_out_what_was_erased(canvas: Model) -> None:
    every, less = rest(canvas), rest(canvas, ["twemoji", "dog"])
    assert len(every) == len(less) == 48 == len(set(less.ids)) and len(set(every.captions)) == 48
    assert any("twemoji" in text for text in every.captions)
    assert not any("twemoji" in text or "dog" in text.split() for text in less.captions)


def test_a_folder_with_too_few_pictures_is_refused(canvas: Model, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "few", range(3))
    with pytest.raises(DataError, match="at least four different pictures; found: 3"):
        Domain.read(str(folder), canvas, 0)


def test_another_model_than_the_bundled_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toys.build("sd", tmp_path / "toy")
    names = [
        "--illegal",
        str(pictures(tmp_path / "a", range(4))),
        "--innocent",
        str(pictures(tmp_path / "b", range(4, 9))),
    ]
    out, mask = tmp_path / "published", tmp_path / "mask"
    learn = ["guard", "learn", "--model", str(model), "--method", "random"]
    assert main([*learn, *names, "--out", str(mask)]) == 0
    assert main(["guard", "apply", str(mask), "--out", str(out)]) == 0
    arguments: list[Any] = ["guard", "verify", out, out, "--manifest", out / "unet" / "manifest.json"]
    assert main([str(each) for each in arguments]) == 0
    assert main(attack(tmp_path / "attack", "--guard", str(mask), *names)) == 0
    assert Relearning.load(tmp_path / "attack").probes == ("a", "b")
    capsys.readouterr()
    assert main([*learn, "--illegal", "fxemoji", *names[2:], "--out", str(tmp_path / "other")]) == 2
    assert "'fxemoji' is a domain of the bundled model" in capsys.readouterr().err


def test_lists_and_help_that_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "domains"]) == 0
    assert "fxemoji" in capsys.readouterr().out
    assert main(["list", "masks"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("freezeasguard", "official", "random-matched")) and ":func:" not in said
    code = "import sys, unteach.cli as c\ntry: c.main(['guard', 'learn', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
