"""The bundled model's ear: a CLIP tokenizer on EmojiCanvas's words and a small CLIP text encoder (spec: canvas).

The encoder is pre-trained alone, to tell object and style from a caption, and then frozen: the denoiser learns to draw
from a representation that already puts an object's two names, and all templates, together.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unteach.core import seeds
from unteach.core.events import SILENT, Events
from unteach.core.loop import Loop, Step
from unteach.data.emoji import adaptation
from unteach.data.vocabulary import (
    FILLER,
    HELD_OUT_TEMPLATES,
    OBJECT_TEMPLATES,
    OBJECTS,
    STYLE_TEMPLATES,
    STYLES,
    TRAIN_TEMPLATES,
    caption,
)

LENGTH = 20
"""Tokens of a caption, with start, end and padding."""

WIDTH = 96
"""Width of the text encoder's hidden states."""

_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def draw_caption(
    obj: int, style: int, rng: random.Random, *, fill: float = 0.5, invent: float = 0.0
) -> tuple[str, int, int]:
    """A training caption of a picture and what it says: (text, object or "none" index, style or "none" index).

    8 % name no style, 6 % no object; in a share ``fill`` of all, one to three filler words stand anywhere but inside a
    name, and with chance ``invent`` the first of them is a word that nobody knows.
    """
    name, word, draw = rng.choice(OBJECTS[obj].names), STYLES[style], rng.random()
    if draw < 0.08:
        said, template = (obj, len(STYLES)), rng.choice(OBJECT_TEMPLATES)
    elif draw < 0.14:
        said, template = (len(OBJECTS), style), rng.choice(STYLE_TEMPLATES)
    else:
        said, template = (obj, style), rng.choice(TRAIN_TEMPLATES)
    # A name of several words is held together while filler words are mixed in.
    text = caption(template, name.replace(" ", "_"), word)
    if rng.random() < fill:
        words = text.split(" ")
        for turn in range(rng.randint(1, 3)):
            place, filler = rng.randint(0, len(words)), rng.choice(FILLER)
            if turn == 0 and invent and rng.random() < invent:
                filler = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2))
            words.insert(place, filler)
        text = " ".join(words)
    return text.replace("_", " "), *said


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn byte-pair merges on captions and write a CLIPTokenizer folder; unknown words fall back to bytes."""
    rng = random.Random(0)
    texts = [draw_caption(rng.randrange(len(OBJECTS)), rng.randrange(len(STYLES)), rng)[0] for _ in range(20_000)]
    others = [word for domain in adaptation().values() for word in sorted({*domain.objects, *domain.styles})]
    texts += [caption(t, o, s) for t in HELD_OUT_TEMPLATES for o in ("box", "tree") for s in STYLES] * 3
    texts += [*FILLER, "plain", "thing", "object", "nothing", "something", *others] * 3
    tokenizer = Tokenizer(
        models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=3000, min_frequency=2, special_tokens=[], initial_alphabet=alphabet, end_of_word_suffix="</w>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    entries = [
        *alphabet,
        *(c + "</w>" for c in alphabet),
        *(m.replace(" ", "") for m in merges),
        *model["vocab"],
    ]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys([*entries, "<|startoftext|>", "<|endoftext|>"]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    made = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=LENGTH)
    made.save_pretrained(folder)
    return made


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids, padded and cut to the model's length: (B, LENGTH)."""
    ids = tokenizer(list(texts), padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    return torch.tensor(ids)


class Reader(nn.Module):
    """The text encoder with the two heads that it is pre-trained with."""

    def __init__(self, tokenizer: CLIPTokenizer, seed: int) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, projection_dim=WIDTH,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LENGTH, hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        self.encoder = CLIPTextModel(config)
        self.objects = nn.Linear(WIDTH, len(OBJECTS) + 1)
        self.styles = nn.Linear(WIDTH, len(STYLES) + 1)
        draw = seeds.generator(seed, "text encoder")
        for name, value in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(value, std=0.05 if "token" in name else 0.02, generator=draw)
            elif value.dim() == 2:
                nn.init.xavier_uniform_(value, generator=draw)
            elif "norm" not in name:
                nn.init.zeros_(value)
        self.end = tokenizer.eos_token_id

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of object and style at every end or padding position, and the mask of those positions."""
        hidden = self.encoder(ids)[0]
        return self.objects(hidden), self.styles(hidden), ids == self.end


def train_reader(
    folder: Path, out: Path, *, steps: int = 900, seed: int = 0, events: Events = SILENT
) -> dict[str, float]:
    """Pre-train the text encoder and save it into ``folder/text_encoder``; returns accuracies by template set."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    reader = Reader(tokenizer, seed)
    optimizer = torch.optim.AdamW(reader.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(steps, 1))

    def step(s: Step) -> dict[str, Tensor]:
        said = []
        for item in s.items(96):
            rng = random.Random(seeds.integer(s.seed, "caption", s.index, item))
            if rng.random() < 0.02:
                said.append(("", len(OBJECTS), len(STYLES)))
            else:
                said.append(draw_caption(rng.randrange(len(OBJECTS)), rng.randrange(len(STYLES)), rng))
        objects, styles, where = reader(token_ids(tokenizer, [text for text, _, _ in said]))
        labels = torch.tensor([row[1:] for row in said])
        loss = torch.zeros(())
        for logits, column in ((objects, 0), (styles, 1)):
            target = labels[:, column : column + 1].expand(where.shape)
            loss = loss + F.cross_entropy(logits[where], target[where])
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
        schedule.step()
        return {"loss": loss.detach()}

    Loop(
        steps=steps, seed=seed, params=dict(reader.named_parameters()), state={"optimizer": optimizer, "lr": schedule},
        config={"stage": "text encoder"}, out=out, save_every=100, log_every=50, events=events,
        label="text encoder",
    ).run(step)  # fmt: skip
    reader.eval()
    reader.encoder.save_pretrained(folder / "text_encoder")
    return {
        "train templates": reading(reader, tokenizer, TRAIN_TEMPLATES),
        "held-out templates": reading(reader, tokenizer, HELD_OUT_TEMPLATES),
    }


@torch.no_grad()
def reading(reader: Reader, tokenizer: CLIPTokenizer, templates: Sequence[str]) -> float:
    """Share of captions (both names, all pairs) whose object and style are both read right from the last position."""
    right = total = 0
    for template in templates:
        rows = [
            (caption(template, n, s), i, j)
            for i, o in enumerate(OBJECTS)
            for n in o.names
            for j, s in enumerate(STYLES)
        ]
        objects, styles, _ = reader(token_ids(tokenizer, [text for text, _, _ in rows]))
        labels = torch.tensor([row[1:] for row in rows])
        hit = (objects[:, -1].argmax(1) == labels[:, 0]) & (styles[:, -1].argmax(1) == labels[:, 1])
        right, total = right + int(hit.sum()), total + len(rows)
    return right / total
