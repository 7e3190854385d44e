"""The bundled model's captions, tokenizer and linear encoder."""

import random
from pathlib import Path

import torch

from tools.canvas import autoencoder, text_encoder
from unteach.canvas import model_path
from unteach.data import emoji
from unteach.data.vocabulary import FILLER, OBJECTS, STYLES


def test_captions_say_what_they_show() -> None:
    rng = random.Random(3)
    for _ in range(300):
        obj, style = rng.randrange(len(OBJECTS)), rng.randrange(len(STYLES))
        text, said_object, said_style = text_encoder.draw_caption(obj, style, rng, invent=0.5)
        assert (said_object < len(OBJECTS)) == any(name in text for name in OBJECTS[obj].names)
        assert (said_style < len(STYLES)) == (STYLES[style] in text.split() or f"{STYLES[style]}," in text)
        assert said_object in (obj, len(OBJECTS)) and said_style in (style, len(STYLES))


def test_no_filler_is_an_invented_or_held_out_word() -> None:
    rng = random.Random(0)
    known = {w for o in OBJECTS for n in o.names for w in n.split()} | set(STYLES) | set(FILLER)
    texts = [text_encoder.draw_caption(0, 0, rng, fill=1.0, invent=1.0)[0] for _ in range(50)]
    assert any(set(text.replace(",", "").split()) - known for text in texts)


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    made = text_encoder.build_tokenizer(tmp_path / "tokenizer")
    bundled = text_encoder.CLIPTokenizer.from_pretrained(model_path() / "tokenizer")
    for text in ("a twemoji dog", "show me an unheard-of thing", ""):
        ids = text_encoder.token_ids(made, [text])
        assert ids.shape == (1, text_encoder.LENGTH)
        assert torch.equal(ids, text_encoder.token_ids(bundled, [text]))
        assert made.decode(ids[0], skip_special_tokens=True) == text.replace("-", " - ")


def test_the_encoder_is_linear() -> None:
    grid = emoji.grid()
    objects, styles = grid.pairs()
    images = grid.views(objects, styles) * 2 - 1
    vae = autoencoder.build(images)
    with torch.no_grad():
        a, b, mean = (
            vae.encode(x).latent_dist.mean for x in (images[:8], images[8:16], (images[:8] + images[8:16]) / 2)
        )
        everything = vae.encode(images).latent_dist
    assert torch.allclose((a + b) / 2, mean, atol=2e-2)
    assert everything.mean.shape == (480, autoencoder.LATENTS, 8, 8)
    assert float(everything.std.max()) < 1e-2
    assert 0.9 < float(everything.mean.std()) < 1.1
