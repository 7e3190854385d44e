import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from tests.records import guarded
from tests.report.pages import Page

from unteach.canvas import model_path
from unteach.cli import main
from unteach.core import state
from unteach.errors import CheckpointError
from unteach.records.attack import Mean, Relearning
from unteach.records.erasure import Results
from unteach.records.mask import Mask
from unteach.report import freeze_table, svg
from unteach.report.format import mean
from unteach.report.format import percent as share
from unteach.report.freeze_table import by, kind, module, part, table, tally
from unteach.report.guard_words import finding
from unteach.report.page import find, page


def mask_of(data: dict[str, Any], folder: Path) -> Mask:
    return Mask.load(state.write_json(folder / "mask.json", data))


def attacks_of(data: dict[str, Any], folder: Path) -> Relearning:
    return Relearning.load(state.write_json(folder / "relearning.json", data))


def render(mask: Mask | None, attacks: Relearning | None, out: Path, title: str = "") -> Path:
    return page([record for record in (mask, attacks) if record is not None], out, title=title)


def both(folder: Path, **more: Any) -> tuple[Mask, Relearning]:
    of = guarded.mask()
    return mask_of(of, folder), attacks_of(guarded.attacks(of, **more), folder)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a U-Net, without its weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    return {name: tuple(value.shape) for name, value in unet.named_parameters()}


SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}


def test_the_page_has_everything_and_loads_nothing(tmp_path: Path) -> None:
    page = Page(render(*both(tmp_path), tmp_path / "page.html"))
    assert {"html", "head", "title", "style", "main", "h1", "svg", "caption"} <= {tag for tag, _ in page.tags}
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "img"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes)
        assert attributes.get("href", "#x").startswith("#")
    assert not re.search(r"https?:|url\(|@import|//\w", page.source)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {a["href"][1:] for a in page.all("a")} <= set(ids)
    assert all(drawn.get("aria-label") for drawn in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table"))
    for fact in (
        "Guard: canvas against fxemoji",
        "Frozen: 2 of 8 tensors (25 %), 168 of 756 parameters (22 %), chosen by freezeasguard; asked for: 30 % of the",
        "AdamW, full fine-tuning and LoRA of rank 4, up to 40 steps, batches of 16, learning rate 0.0003 and 0.001",
        "fxemoji (illegal), mask kept: full fine-tuning still 6",
        "instruments (innocent, not used to learn the mask), mask kept",
        "fxemoji (illegal), mask ignored: full fine-tuning still 100 %",
        "One who ignores it gets 100 %.",
        "conv_in: 1 of 2 tensors frozen, 144 of 148 parameters, mean score",
        "In the last 10 publisher steps",
        "Fine-tuning on emojione-v1",
        "Recovery at each measured step",
        "What this does not show",
        "Open weights are not protected",
        "unteach guard learn --illegal fxemoji",
        "unteach attack relearn --guard guard",
        '"guard": "freezeasguard"',
        "illegal user",
    ):
        assert fact in page.text, fact
    assert "Diverged" not in page.text


def test_cells_say_what_the_attacks_say(tmp_path: Path) -> None:
    mask, attacks = both(tmp_path)
    page = Page(render(mask, attacks, tmp_path))
    assert (tmp_path / "report.html").is_file()
    for domain in ("fxemoji", "emojione-v1", "instruments"):
        for mode in ("full", "lora"):
            reach = attacks.reach(domain, mode, "kept")
            assert reach is not None and reach.share.low is not None and reach.share.high is not None
            cell = f"{share(reach.share.mean)}{round(100 * reach.share.low)} to {round(100 * reach.share.high)} %"
            assert f"{cell}rate 0.001, 40 steps".replace(" ", "") in page.text.replace(" ", "")
    setting = attacks.settings[1]
    before, plain, kept = (
        attacks.loss(setting, a, s) for a, s in (("unprotected", 0), ("unprotected", 20), ("kept", 20))
    )  # type: ignore[arg-type]
    assert before and plain and kept
    row = f"full fine-tuning, rate {setting.rate:g} 20 {plain.mean:.4f}"
    assert row.replace(" ", "") in page.text.replace(" ", "") and f"{kept.mean:.4f}" in page.text
    assert mean(attacks.recovery(setting, "kept", 20)) in page.text
    assert f"fxemoji {before.mean:.4f}" in page.text


def test_either_half_makes_a_page(tmp_path: Path) -> None:
    mask, attacks = both(tmp_path)
    alone = Page(render(mask, None, tmp_path / "a.html", title="Mine"))
    assert "No attack was run: what this mask hinders is not known." in alone.text and "Mine" in alone.text
    assert "The budget" in alone.text and "Fine-tuning on" not in alone.text
    attack = Page(render(None, attacks, tmp_path / "b.html"))
    assert "Frozen: 2 of 8 tensors (mask “freezeasguard”)" in attack.text and "The budget" not in attack.text
    plain = Page(render(None, attacks_of(guarded.attacks(None), tmp_path / "x"), tmp_path / "c.html"))
    assert "there is no mask to judge here" in plain.text and "How far each attacker gets" not in plain.text
    other = attacks_of(guarded.attacks(guarded.mask(rho=0.5)), tmp_path / "y")
    with pytest.raises(CheckpointError, match="another mask"):
        render(mask, other, tmp_path / "d.html")
    assert not (tmp_path / "d.html").exists()


EVEN = {"emojione-v1": 0.5, "instruments": 0.5}


@pytest.mark.parametrize(
    ("tone", "said", "more"),
    [
        ("good", "on fxemoji gets 30 % as far as without it", {"kept": {**guarded.KEPT, "fxemoji": 0.3}}),
        ("fair", "gets 60 % as far as without it, the most of 2 illegal attacks. Innocent", {}),
        ("fair", "Innocent fine-tuning gets 90 %", {}),
        ("bad", "The mask does not hinder: kept,", {"kept": dict.fromkeys(guarded.KEPT, 1.0)}),
        ("bad", "on fxemoji still gets 97 % as far as without", {"kept": {**guarded.KEPT, "fxemoji": 0.97}}),
        ("bad", "Not shown to hinder", {"kept": {**guarded.KEPT, "fxemoji": 0.85}, "noise": 0.1}),
        ("fair", "It hinders innocents no less", {"kept": {**EVEN, "fxemoji": 0.6}}),
        ("fair", "they are not told apart", {"kept": {**EVEN, "fxemoji": 0.45}, "noise": 0.03}),
        ("fair", "No innocent domain was measured", {"domains": [("fxemoji", "illegal")]}),
        ("none", "No illegal domain was attacked", {"domains": [("instruments", "unseen")]}),
        ("none", "Nothing to compare with", {"learned": False}),
        ("fair", "One who ignores it is not hindered at all.", {"ignore": False}),
    ],
)
def test_the_finding_says_what_was_found(tone: str, said: str, more: dict[str, Any], tmp_path: Path) -> None:
    found = finding(*both(tmp_path, **{"noise": 0.001, **more}))
    assert (found.tone, said in found.headline) == (tone, True), found.headline


def test_everything_else_is_the_probe_of_no_domain(tmp_path: Path) -> None:
    mask, attacks = both(tmp_path, modes=("full",), seeds=(0,))
    assert "on everything else (emojione-v1, instruments; mean) below" in Page(render(mask, attacks, tmp_path)).text
    data = guarded.attacks(guarded.mask(), modes=("full",), seeds=(0,))
    data["probes"].append("canvas")
    for r in data["records"]:
        r["losses"]["canvas"] = [0.3 + 0.01 * at for at in range(len(r["at"]))]
    page = Page(render(mask, attacks_of(data, tmp_path), tmp_path))
    assert "on everything else (canvas) below" in page.text and "0.3300" in page.text


def test_the_worst_mode_decides(tmp_path: Path) -> None:
    """A mask that holds in full fine-tuning and not in LoRA does not hinder."""
    of = guarded.mask()
    weak, strong = (guarded.attacks(of, kept={**guarded.KEPT, "fxemoji": x}, noise=0.001) for x in (1.0, 0.2))
    weak["records"] = [r for data, m in ((strong, "full"), (weak, "lora")) for r in data["records"] if r["mode"] == m]
    found = finding(mask_of(of, tmp_path), attacks_of(weak, tmp_path))
    assert found.tone == "bad" and "LoRA on fxemoji still gets" in found.headline


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    page = Page(render(*both(tmp_path, seeds=(4,)), tmp_path / "page.html"))
    assert "one seed, so without an interval" in page.text and "1 seed." in page.text


def test_diverged_attacks_are_named(tmp_path: Path) -> None:
    more = {"diverged": [("fxemoji", "full", 1e-3, 2, "kept"), ("fxemoji", "lora", 1e-3, 0, "unprotected")]}
    page = Page(render(*both(tmp_path, **more), tmp_path / "page.html"))
    assert "on fxemoji, full, rate 0.001, seed 2, mask kept: after step 10" in page.text
    assert "on fxemoji, lora, rate 0.001, seed 0, unprotected: after step 10" in page.text
    assert "2 of 3 seeds" in page.text


def test_numbers_are_written_plainly() -> None:
    shown = [share(x) for x in (0, 0.004, 0.5, 0.999, 1, 1.002, 1.2, -0.003, -0.2)]
    assert shown == ["0 %", "< 1 %", "50 %", "> 99 %", "100 %", "> 100 %", "120 %", "about 0 %", "−20 %"]
    assert mean(Mean(0.5, 0.1, -0.1, 1.1, 3)) == "50 % (−10 to 110)" and mean(Mean(0.5, None, None, None, 1)) == "50 %"


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("conv_in.weight", "conv_in"),
        ("time_embedding.linear_2.bias", "time_embedding"),
        ("add_embedding.linear_1.weight", "add_embedding"),
        ("down_blocks.3.resnets.1.conv_shortcut.weight", "down_blocks.3"),
        ("up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k.weight", "up_blocks.1"),
        ("mid_block.attentions.0.proj_out.weight", "mid_block"),
        ("down_blocks.0.gate", "down_blocks.0"),
        ("conv_norm_out.weight", "conv_norm_out"),
        ("transformer_blocks.11.attn.to_q.weight", "transformer_blocks.11"),
        ("single_transformer_blocks.2.proj_mlp.weight", "single_transformer_blocks.2"),
        ("x_embedder.weight", "x_embedder"),
        ("pos_embed.proj.weight", "pos_embed"),
        ("proj_out.weight", "proj_out"),
        ("conv_input.weight", "other"),
        ("", "other"),
    ],
)
def test_tensors_have_their_part(name: str, where: str) -> None:
    assert part(name) == where


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "cross-attention"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight", "self-attention"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.bias", "biases"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", "feed-forward"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.norm2.weight", "norms"),
        ("down_blocks.0.attentions.0.proj_in.weight", "attention projections"),
        ("down_blocks.0.resnets.0.norm1.bias", "norms"),
        ("down_blocks.0.resnets.0.conv1.weight", "resnet convolutions"),
        ("down_blocks.0.resnets.0.conv_shortcut.weight", "resnet convolutions"),
        ("down_blocks.0.resnets.0.time_emb_proj.weight", "time embedding"),
        ("time_embedding.linear_1.weight", "time embedding"),
        ("up_blocks.0.upsamplers.0.conv.weight", "resampling convolutions"),
        ("conv_in.weight", "first and last convolution"),
        ("conv_norm_out.weight", "norms"),
        ("add_embedding.linear_1.weight", "other"),
        ("scale", "other"),
        ("transformer_blocks.0.attn.to_q.weight", "self-attention"),
        ("transformer_blocks.0.attn2.to_q.weight", "self-attention"),
        ("transformer_blocks.0.attn.add_q_proj.weight", "cross-attention"),
        ("transformer_blocks.0.ff_context.net.2.weight", "feed-forward"),
        ("transformer_blocks.0.norm1.linear.weight", "other"),
        ("single_transformer_blocks.0.proj_out.weight", "feed-forward"),
        ("time_text_embed.timestep_embedder.linear_1.weight", "time embedding"),
    ],
)
def test_tensors_have_their_kind(name: str, found: str) -> None:
    assert kind(name) == found


def canvas() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((model_path() / "unet" / "config.json").read_text())
    return config


@pytest.mark.parametrize(
    ("config", "tensors", "size", "boxes"),
    [
        (canvas, 286, 4_261_016, 9),
        (lambda: SD1, 686, 859_520_964, 13),
        (lambda: SDXL, 1680, 2_567_463_684, 12),
    ],
)
def test_every_tensor_of_a_real_network_is_counted_once(
    config: Callable[[], dict[str, Any]], tensors: int, size: int, boxes: int, tmp_path: Path
) -> None:
    mask = mask_of(guarded.mask(shapes(config())), tmp_path)
    whole = tally(mask.tensors)
    assert (whole.tensors, whole.size) == (tensors, size)
    for counts in (by(mask.tensors, what) for what in (part, kind, module)):
        assert sum(t.tensors for t in counts.values()) == tensors and sum(t.size for t in counts.values()) == size
        assert sum(t.frozen for t in counts.values()) == whole.frozen
    parts = list(by(mask.tensors, part))
    assert len(parts) == boxes and parts[:2] == ["conv_in", "time_embedding"]
    blocks = [name for name in parts if "block" in name]
    downs, ups = ([name for name in blocks if name.startswith(side)] for side in ("down", "up"))
    assert blocks == [*sorted(downs), "mid_block", *sorted(ups)] and parts[-2:] == ["conv_norm_out", "conv_out"]
    for what in ("frozen", "score"):
        drawn = table(mask.tensors, what)  # type: ignore[arg-type]
        assert [name for name, _ in drawn.rows] == parts
        assert drawn.columns == ("all kinds", *by(mask.tensors, kind))
        cells = [[cell for cell in row[1:] if cell] for _, row in drawn.rows]
        said = [re.findall(r": (\d+) of (\d+) tensors frozen", cell.words)[0] for row in cells for cell in row]
        assert sum(int(of) for _, of in said) == tensors and sum(int(n) for n, _ in said) == whole.frozen
        assert all(0 <= cell.fill <= 1 for row in cells for cell in row)
    page = Page(render(mask, None, tmp_path))
    assert page.text.count("tensors frozen, ") == len(by(mask.tensors, module))


def test_cells_show_the_frozen_share(tmp_path: Path) -> None:
    data = guarded.mask({"conv_in.weight": (30,), "conv_in.bias": (10,), "conv_out.weight": (40,), "x.weight": (5,)})
    for tensor, held, score in zip(data["tensors"], (True, False, True, False), (0.2, 0.4, 0.9, None), strict=True):
        tensor |= {"frozen": held, "score": score}
    mask = mask_of(data, tmp_path)
    drawn = table(mask.tensors)
    assert drawn.columns == ("all kinds", "first and last convolution", "biases", "other")
    rows = {name: cells for name, cells in drawn.rows}
    assert list(rows) == ["conv_in", "conv_out", "other"] and rows["conv_out"][2] is None and rows["other"][1] is None
    both_, weight, bias, _ = rows["conv_in"]
    assert weight and bias and both_ and rows["conv_out"][1] and rows["other"][3]
    assert both_.words == "conv_in, all kinds: 1 of 2 tensors frozen, 30 of 40 parameters, mean score 0.30"
    assert (both_.fill, both_.shown, both_.whole) == (0.75, "75", False)
    assert (weight.fill, weight.whole, bias.fill, bias.shown) == (1.0, True, 0.0, "0")
    assert rows["conv_out"][1].whole and "score" not in rows["other"][3].words
    assert drawn.span == (0.2, 0.9)
    scored = {
        name: [c and (c.shown, round(c.fill, 3)) for c in cells] for name, cells in table(mask.tensors, "score").rows
    }
    assert scored["conv_in"] == [("0.30", 0.143), ("0.20", 0.0), ("0.40", 0.286), None]
    assert scored["conv_out"][1] == ("0.90", 1.0) and scored["other"][3] == ("–", 0.0)
    few = mask_of(guarded.mask({"a": (1,), "b": (999,)}, rho=0.5, scored=False), tmp_path)
    (cell,) = [cells[0] for _, cells in freeze_table.table(few.tensors).rows]
    assert cell and cell.shown in ("< 1", "> 99") and freeze_table.table(few.tensors).span is None


@pytest.mark.parametrize(
    "names",
    [
        ["a"],
        ["up_blocks.0.resnets.0.conv1.weight"],
        ["mid_block.resnets.0.conv1.weight", "down_blocks.2.resnets.0.conv1.weight"],
        [f"transformer_blocks.{i}.attn.to_{k}.weight" for i in range(40) for k in "qkv"],
    ],
)
def test_odd_networks_make_a_page(names: list[str], tmp_path: Path) -> None:
    data = guarded.mask(dict.fromkeys(names, (2, 2)), rho=None, scored=False, log=[], data={})
    page = Page(render(mask_of(data, tmp_path), None, tmp_path / "page.html"))
    assert all(re.sub(r"\.weight$", "", name) + ": " in page.text for name in names)
    assert "mean score." not in page.text and "Did the mask settle" not in page.text


def test_hostile_text_is_shown_as_it_is(tmp_path: Path) -> None:
    word = "<script>\"'&"
    of = guarded.mask({word: (1,), f"conv_in.{word}": (1,)}, command=word, environment={word: word})
    of |= {"method": {"name": word}, "model": {"name": word, "digest": guarded.DIGEST}}
    of["data"] = {"illegal": [word], "innocent": [word], "digests": {word: word}, "seed": 0}
    data = guarded.attacks(of, domains=[(word, "illegal")], kept={word: 0.5}, command=word, environment={word: word})
    data["model"] = {"name": word, "digest": guarded.DIGEST}
    page = Page(render(mask_of(of, tmp_path), attacks_of(data, tmp_path), tmp_path / "page.html", title=word))
    assert not page.all("script") and page.text.count("<script>") > 20


def test_lines_lie_at_given_places() -> None:
    line = svg.Line(label="a", css="c0", values=(0.0, 50.0, 100.0))
    drawn = svg.lines([line], title="t", x_label="x", scale=[0, 100], width=142, height=138, at=[0, 10, 40])
    assert 'points="34.0,108.0 59.0,58.0 134.0,8.0"' in drawn  # 34 to 134 across for 0..40
    assert re.findall(r'text-anchor="middle">(\d+)<', drawn) == ["0", "10", "40"]
    close = svg.lines([line], title="t", x_label="x", scale=[0, 100], width=142, height=138, at=[0, 1, 40])
    assert re.findall(r'text-anchor="middle">(\d+)<', close) == ["0", "40"]
    unnamed = svg.Line(label="seed", css="c0", values=(1.0, 2.0, 3.0), named=False)
    assert 'class="name c0"' not in svg.lines([unnamed], title="t", x_label="x", names=40)


def test_folders_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = guarded.mask()
    guard, attack = tmp_path / "guard", tmp_path / "elsewhere"
    state.write_json(guard / "mask.json", of)
    state.write_json(attack / "relearning.json", guarded.attacks(of))
    Results(title="A mixed page").save(tmp_path / "erased" / "results.json")
    assert [type(record) for record in find(guard)] == [Mask] and [type(r) for r in find(attack)] == [Relearning]
    assert main(["report", str(guard)]) == 0
    assert str(guard / "report.html") in capsys.readouterr().out
    assert "No attack was run" in Page(guard / "report.html").text
    assert main(["report", str(attack / "relearning.json"), "--title", "Attacked"]) == 0
    assert "Attacked" in Page(attack / "report.html").text
    assert main(["report", str(guard), str(tmp_path / "erased")]) == 0
    both = Page(guard / "report.html")
    assert "A mixed page; Guard: canvas against fxemoji" in both.text and "How it was made" in both.text
    state.write_json(guard / "attack" / "relearning.json", guarded.attacks(of))
    assert main(["report", str(guard), "--out", str(tmp_path / "page.html")]) == 0
    assert "Fine-tuning on fxemoji" in Page(tmp_path / "page.html").text
    capsys.readouterr()
    assert main(["report", str(guard), str(attack)]) == 2
    assert "a page is of one relearning.json" in capsys.readouterr().err
    (guard / "mask.json").write_text("{")
    assert main(["report", str(guard)]) == 2
    assert "damaged" in capsys.readouterr().err
