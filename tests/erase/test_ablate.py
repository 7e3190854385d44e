"""Concept Ablation against its formula, written again without the package's training code."""

import pytest
import torch
from tests.erase.common import CONCEPT, plain, start

from unteach.core.loop import Step
from unteach.erase import erase
from unteach.erase.train import training


@pytest.mark.parametrize("teacher", ["current", "original"])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_steps_are_adamw_on_the_papers_loss(sd, teacher, weight):
    """Two steps by hand: U-Net called directly, gradients by backward, torch's own clipping and AdamW."""
    method = plain("ablate", steps=2, teacher=teacher, retain_weight=weight, detach_first_token=False, clip=0.5)
    with training(sd, method.selected(sd)) as student:
        run = start(method, sd, student)
        halves = [[run.batch(Step(i, 2, 3), half) for half in ("unlearn", "retain")] for i in range(2)]
        data = run.data
    got = erase(sd, CONCEPT, method, seed=3)

    unet, bar = sd.pipe.unet, sd.pipe.scheduler.alphas_cumprod
    params = {n: p for n, p in unet.named_parameters() if "attn2.to_k" in n or "attn2.to_v" in n}
    before = {n: p.detach().clone() for n, p in params.items()}
    frozen = {n: p.detach().clone() for n, p in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(params.values(), lr=method.learning_rate, weight_decay=method.weight_decay)

    def output(batch, prompts, network=None):
        a = bar[batch.t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * batch.x0 + (1 - a).sqrt() * batch.eps
        hidden = torch.cat([sd.pipe.encode_prompt(p, "cpu", 1, False)[0] for p in prompts])
        if network is None:
            return unet(x_t, batch.t, hidden).sample
        return torch.func.functional_call(unet, network, (x_t, batch.t, hidden)).sample

    for p in params.values():
        p.requires_grad_(True)
    for unlearn, retain in halves:
        optimizer.zero_grad()
        pairs = [data.pairs[row] for row in unlearn.rows]
        with torch.no_grad():
            wanted = output(unlearn, [p.anchor for p in pairs], frozen if teacher == "original" else None)
        loss = (output(unlearn, [p.target for p in pairs]) - wanted).square().mean()
        kept = (output(retain, [data.retain[row] for row in retain.rows]) - retain.eps).square().mean()
        (loss + weight * kept).backward()
        torch.nn.utils.clip_grad_norm_(list(params.values()), 0.5)
        optimizer.step()
    for name, param in params.items():
        torch.testing.assert_close(got.tensors[name], param.detach() - before[name], rtol=2e-3, atol=2e-5)


def test_the_two_teachers_differ_after_the_first_step(sd, erased):
    for steps, equal in ((1, True), (3, False)):
        a, b = (
            erase(sd, CONCEPT, plain("ablate", steps=steps, teacher=teacher)) for teacher in ("current", "original")
        )
        assert all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors) == equal


@pytest.mark.parametrize("kind", ["sd_v", "sdxl"], indirect=True)
def test_training_brings_the_target_to_the_anchor(model):
    method = plain(
        "ablate",
        steps=30,
        learning_rate=1e-2,
        retain_weight=0.0,
        weight_decay=0.0,
        teacher="original",
        batch_size=4,
        clip=0.0,
    )
    probe = ("a twemoji dog", "an openmoji dog")
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(8, *model.latent_shape, generator=generator)
    t = torch.arange(100, 900, 100)
    target, anchor = (model.encode([prompt] * 8) for prompt in probe)
    with torch.no_grad():  # erasing finds its own way to gradients
        wanted, first = model.predict(x_t, t, anchor), model.predict(x_t, t, target)
        with erase(model, CONCEPT, method).apply(model):
            after = model.predict(x_t, t, target)
    assert float((after - wanted).square().mean()) < 0.6 * float((first - wanted).square().mean())
