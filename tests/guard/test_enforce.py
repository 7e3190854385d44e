"""Enforcing a mask in other people's training code."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from tests import processes, toys
from tests.guard import worker
from tests.guard.eight_bit import EightBitAdamW
from torch import Tensor, nn

from unteach.core.freeze import freeze
from unteach.errors import ConfigError, ModelError
from unteach.guard.enforce import adapter_targets, check_adapters, check_fused, enforce, load_frozen

KV = [f"mid_block.attentions.0.transformer_blocks.0.attn2.to_{x}.weight" for x in "kv"]
HELD = [*KV, "conv_in.weight", "conv_in.bias", "up_blocks.0.resnets.0.norm1.weight", "time_embedding.linear_2.weight"]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def unet(tmp_path_factory: pytest.TempPathFactory) -> UNet2DConditionModel:
    toy = toys.build("sd", tmp_path_factory.getbasetemp() / "guard-sd")
    return UNet2DConditionModel.from_pretrained(toy, subfolder="unet", local_files_only=True).train()


def loss(unet: Any, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 6, 16, generator=generator)
    return unet(x, torch.tensor([10 * step, 500]), text).sample.sub(x).square().mean()


def train(unet: Any, optimizer: Any, steps: int = 2, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad(set_to_none=True)
        loss(unet, step).backward()
        optimizer.step()


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_held(unet: nn.Module, before: dict[str, Tensor], held: list[str] = HELD) -> None:
    """What was frozen has not moved in one bit, and all the rest has."""
    same = {name for name, p in unet.named_parameters() if torch.equal(p, before[name])}
    assert same == set(held)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, weight_decay=0.1, momentum=0.9),
    "8-bit": lambda p: EightBitAdamW(p, lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_same_objects_train_on_and_frozen_tensors_keep_every_bit(kind: str, unet: UNet2DConditionModel) -> None:
    optimizer = OPTIMIZERS[kind](unet.parameters())
    train(unet, optimizer, 1)  # there is momentum of what will be frozen
    before = copied(unet)
    with enforce(unet, optimizer, frozen=HELD) as guard:
        assert guard.model is unet and guard.optimizer is optimizer
        train(unet, optimizer)
        assert_held(unet, before)
        for name in HELD:
            parameter = unet.get_parameter(name)
            assert parameter.grad is None and not parameter.requires_grad and parameter not in optimizer.state
        assert len(optimizer.state) == len(guard.trainable()) == len(before) - len(HELD)
        assert guard.share.frozen_tensors == len(HELD) and guard.share.tensors == len(before)
    assert all(p.requires_grad for p in unet.parameters())


def test_the_eight_bit_optimizer_is_one_and_moves_what_is_not_dropped(unet: UNet2DConditionModel) -> None:
    optimizer = EightBitAdamW(unet.parameters(), lr=1e-2)
    frozen = freeze(unet, HELD)
    first = loss(unet, 0).item()
    for _ in range(8):
        optimizer.zero_grad()
        loss(unet, 0).backward()
        optimizer.step()
    assert loss(unet, 0).item() < 0.8 * first
    state = optimizer.state[unet.conv_out.weight]
    assert state["m"].dtype == state["v"].dtype == torch.uint8
    assert set(frozen.moved(unet)) == set(HELD)  # by decay: no gradient alone does not protect


def test_an_empty_mask_is_plain_training_and_a_full_one_changes_nothing(unet: UNet2DConditionModel) -> None:
    twin, still = copy.deepcopy(unet), copy.deepcopy(unet)
    for model, frozen in ((unet, []), (twin, None), (still, [name for name, _ in unet.named_parameters()])):
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        guard = None if frozen is None else enforce(model, optimizer, frozen=frozen)
        if model is still:
            before = copied(still)
            optimizer.step()
            assert_held(still, before, list(before))
            with pytest.raises(RuntimeError, match="does not require grad"):
                loss(still, 0).backward()
        else:
            train(model, optimizer)
        if guard is not None:
            guard.verify()
    assert all(torch.equal(p, twin.get_parameter(name)) for name, p in unet.named_parameters())


def test_gradient_checkpointing_gives_the_same_weights(unet: UNet2DConditionModel) -> None:
    twin, before = copy.deepcopy(unet), copied(unet)
    twin.enable_gradient_checkpointing()
    for model in (unet, twin):
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        with enforce(model, optimizer, frozen=HELD):
            train(model, optimizer)
    assert_held(unet, before)
    for name, p in unet.named_parameters():
        torch.testing.assert_close(p, twin.get_parameter(name), rtol=0, atol=0)


def test_accelerate_in_bfloat16_with_a_scheduler_and_accumulation(unet: UNet2DConditionModel) -> None:
    optimizer = OPTIMIZERS["adamw"](unet.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    guard, before = enforce(unet, optimizer, frozen=HELD), copied(unet)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    try:
        wrapped, optimizer, scheduler = accelerator.prepare(unet, optimizer, scheduler)
        for step in range(4):
            with accelerator.accumulate(wrapped):
                accelerator.backward(loss(wrapped, step))
                accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        guard.verify(accelerator.unwrap_model(wrapped))
        assert_held(unet, before)
        # One that was wrapped before the guard came is opened as well.
        late = copy.deepcopy(unet)
        wrapped = accelerator.prepare(OPTIMIZERS["adamw"](late.parameters()))
        assert enforce(late, wrapped, frozen=[*HELD, "conv_out.weight"]).optimizer is wrapped
        before = copied(late)
        train(late, wrapped)
        assert_held(late, before, [*HELD, "conv_out.weight"])
    finally:
        accelerator.free_memory()
        accelerator.state._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("how", ["requires_grad", "gradient", "group"])
def test_a_step_that_would_train_a_frozen_tensor_is_stopped(how: str, unet: UNet2DConditionModel) -> None:
    optimizer = OPTIMIZERS["adamw"](unet.parameters())
    guard, before = enforce(unet, optimizer, frozen=HELD), copied(unet)
    train(unet, optimizer, 1)
    if how == "requires_grad":
        unet.requires_grad_(True)
    elif how == "gradient":
        unet.conv_in.weight.grad = torch.ones_like(unet.conv_in.weight)
    else:
        optimizer.add_param_group({"params": [unet.conv_in.weight]})
    moved = copied(unet)
    with pytest.raises(ModelError, match="frozen tensors are about to be trained"):
        optimizer.step()
    assert all(torch.equal(p, moved[name]) for name, p in unet.named_parameters())
    assert_held(unet, before)
    guard.release()
    optimizer.step()


def test_verify_names_what_moved(unet: UNet2DConditionModel) -> None:
    guard = enforce(unet, frozen=HELD)
    assert len(guard.trainable()) == len(list(unet.parameters())) - len(HELD)
    unet.conv_in.bias.data[0] += 1e-6
    with pytest.raises(ModelError, match=r"1 of 6 .* conv_in\.bias: values changed"):
        guard.verify()
    with pytest.raises(ModelError, match=r"conv_in\.bias"), enforce(unet, frozen=HELD):
        unet.conv_in.bias.data[0] += 1e-6
    with pytest.raises(RuntimeError, match="own"), enforce(unet, frozen=HELD):
        unet.conv_in.bias.data[0] += 1e-6
        raise RuntimeError("own")


class NaiveAverage:
    """As many write it: rounds in every step, even of what stands still."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def step(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            self.shadow[name].copy_(0.9 * self.shadow[name] + 0.1 * p.detach())


@pytest.mark.parametrize("foreach", [False, True])
def test_averages_of_frozen_tensors_do_not_drift(foreach: bool, unet: UNet2DConditionModel) -> None:
    diffusers = EMAModel(copy.deepcopy(unet).parameters(), decay=0.9, foreach=foreach)
    averaged = torch.optim.swa_utils.AveragedModel(unet, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7))
    naive = NaiveAverage(unet)
    optimizer = OPTIMIZERS["adamw"](unet.parameters())
    before = copied(unet)
    guards = [enforce(unet, optimizer, frozen=HELD, ema=ema) for ema in (diffusers, averaged, naive.shadow)]
    for step in range(3):
        train(unet, optimizer, 1, step)
        diffusers.step(unet.parameters())
        averaged.update_parameters(unet)
        naive.step(unet)
    guards[0].verify()
    guards[1].verify()
    with pytest.raises(ModelError, match=r"averages of . of 6 frozen tensors drifted .* settle\(\)"):
        guards[2].verify()
    guards[2].settle()
    guards[2].verify()
    assert all(torch.equal(naive.shadow[name], before[name]) for name in HELD)
    assert not torch.equal(naive.shadow["conv_out.weight"], unet.conv_out.weight)
    diffusers.copy_to(unet.parameters())
    guards[0].verify()
    assert_held(unet, before)
    # One over what trains does not know the frozen ones; one of other tensors is refused.
    enforce(unet, frozen=HELD, ema=EMAModel([p for p in unet.parameters() if p.requires_grad])).verify()
    with pytest.raises(ConfigError, match="cannot be matched"):
        enforce(unet, frozen=HELD, ema=EMAModel(list(unet.parameters())[:5]))
    fresh = copy.deepcopy(unet).requires_grad_(True)
    with pytest.raises(ConfigError, match="cannot be matched"):
        enforce(fresh, frozen=HELD, ema=naive)
    assert all(p.requires_grad for p in fresh.parameters())


def test_an_optimizer_of_other_tensors_and_a_wrong_mask_change_nothing(unet: UNet2DConditionModel) -> None:
    masters = torch.optim.AdamW([p.detach().clone().requires_grad_() for p in unet.parameters()])
    with pytest.raises(ConfigError, match="none of the model's parameters"):
        enforce(unet, masters, frozen=HELD)
    optimizer = OPTIMIZERS["adamw"](unet.parameters())
    with pytest.raises(ModelError, match=r"conv_inn\.weight.*'conv_in\.weight'"):
        enforce(unet, optimizer, frozen=[*HELD, "conv_inn.weight"])
    assert all(p.requires_grad for p in unet.parameters())
    assert len(optimizer.param_groups[0]["params"]) == len(list(unet.parameters()))


def test_fused_projections_are_refused(unet: UNet2DConditionModel) -> None:
    guard = enforce(unet, torch.optim.AdamW(unet.parameters()), frozen=HELD)
    unet.fuse_qkv_projections()
    for call in (guard.verify, guard.check, lambda: enforce(unet, frozen=HELD)):
        with pytest.raises(ModelError, match=r"attn2\.to_kv.*do not call fuse_qkv_projections"):
            call()
    check_fused(unet, ["conv_in.weight"])  # nothing frozen is in the way


LORA = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=ATTENTION),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=ATTENTION, use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=ATTENTION),
    "oft": lambda: peft.OFTConfig(r=2, oft_block_size=0, target_modules=ATTENTION),
    "ia3": lambda: peft.IA3Config(target_modules=["to_k", "to_v"], feedforward_modules=[]),
    "copy": lambda: peft.LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["conv_in"]),
}


@pytest.mark.parametrize("kind", LORA)
def test_adapters_on_frozen_modules_are_refused_before_and_after(kind: str, unet: UNet2DConditionModel) -> None:
    wanted = "conv_in" if kind == "copy" else r"mid_block.*attn2\.to_k"
    guard = enforce(unet, frozen=HELD)
    wrapped = peft.get_peft_model(unet, LORA[kind]())
    with pytest.raises(ModelError, match=wanted):
        guard.verify()
    with pytest.raises(ModelError, match=wanted):
        guard.check(wrapped)
    optimizer = torch.optim.AdamW(p for p in wrapped.parameters() if p.requires_grad)
    with pytest.raises(ModelError, match=r"target_modules=adapter_targets"):
        enforce(wrapped, optimizer, frozen=HELD)
    guard = enforce(wrapped, optimizer, frozen=["conv_out.weight"])  # no adapter there
    optimizer.step()
    guard.verify()


def test_adapters_elsewhere_train_and_the_frozen_module_is_left_out(unet: UNet2DConditionModel) -> None:
    everything = [n for n, _ in unet.named_modules() if n.endswith(tuple(f".{t}" for t in ATTENTION))]
    targets = adapter_targets(unet, HELD, ATTENTION)
    assert set(everything) - set(targets) == {name.removesuffix(".weight") for name in KV}
    unet.requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights="gaussian"))
    optimizer = OPTIMIZERS["adamw"](p for p in unet.parameters() if p.requires_grad)
    guard, before = enforce(unet, optimizer, frozen=HELD), copied(unet)
    assert guard.frozen.names == tuple(n for n in before if n in HELD)  # as in the plain model
    train(unet, optimizer)
    guard.verify()
    moved = {name for name, p in unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)
    # Merged adapters move their own modules, and no frozen one.
    merged = freeze(unet, [targets[0] + ".weight"])
    unet.fuse_lora()
    guard.verify()
    assert list(merged.moved(unet)) == [targets[0] + ".weight"]


def test_targets_mean_what_peft_means(unet: UNet2DConditionModel) -> None:
    for wish in (["to_k"], ["attn2.to_k", "proj_in"], ["conv_out"]):
        ours = set(adapter_targets(unet, [], wish))
        theirs = peft.inject_adapter_in_model(peft.LoraConfig(r=1, target_modules=wish), copy.deepcopy(unet))
        assert ours == {n for n, m in theirs.named_modules() if hasattr(m, "base_layer")}
    with pytest.raises(ConfigError, match="all of them own frozen tensors"):
        adapter_targets(unet, HELD, ["conv_in"])
    with pytest.raises(ConfigError, match="0 modules match"):
        adapter_targets(unet, HELD, ["nothing"])
    with pytest.raises(ConfigError, match="a list of module names"):
        adapter_targets(unet, HELD, "to_k")


def test_adapters_without_peft_are_seen() -> None:
    """Attention processors with weights (IP-Adapter, custom diffusion) and the older `lora_layer`."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_k = nn.Linear(3, 3)
            self.processor = nn.Module()

    model = nn.ModuleDict({"a": Attention(), "b": Attention()})
    check_adapters(model, ["a.to_k.weight"])
    model["b"].processor.to_k_ip = nn.Linear(3, 3)
    check_adapters(model, ["a.to_k.weight"])
    with pytest.raises(ModelError, match=r"b\.processor"):
        check_adapters(model, ["b.to_k.weight"])
    model["a"].to_k.lora_layer = nn.Linear(3, 3)
    with pytest.raises(ModelError, match=r"a\.to_k"):
        check_adapters(model, {"a.to_k.bias": True})
    check_adapters(model, {"a.to_k.bias": False})


def test_policies_of_every_kind(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    class Manifest:
        frozen = tuple(HELD)

    (tmp_path / "names.json").write_text(json.dumps(HELD), encoding="utf-8")
    for policy in (HELD, tuple(HELD), set(HELD), Manifest(), tmp_path / "names.json", str(tmp_path / "names.json")):
        assert set(load_frozen(policy)) == set(HELD)
    mask = {name: name in HELD for name, _ in unet.named_parameters()}
    assert load_frozen(mask) == mask
    assert set(enforce(unet, frozen=mask).frozen.names) == set(HELD)
    with pytest.raises(ConfigError, match="not a policy"):
        load_frozen(3)  # type: ignore[arg-type]


def together(kind: str, out: Path) -> list[dict[str, Any]]:
    processes.together(worker.member, kind, out)
    return [torch.load(out / f"{kind}-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["accelerate", "fsdp", "fsdp2"])
def test_two_processes_train_as_one_and_keep_the_frozen_tensors(kind: str, tmp_path: Path) -> None:
    results = together(kind, tmp_path)
    start = worker.network()
    alone = worker.network()
    optimizer = torch.optim.AdamW(
        [p for name, p in alone.named_parameters() if name not in worker.HELD], lr=0.05, weight_decay=0.1
    )
    for step in range(4):
        optimizer.zero_grad()
        alone(torch.cat([worker.data(0, step), worker.data(1, step)])).square().mean().backward()
        optimizer.step()
    for result in results:
        assert result["gradients"] == []
        for name, p in start.named_parameters():
            got = next(value for full, value in result["weights"].items() if full.endswith(name))
            assert torch.equal(got, p) == (name in worker.HELD), name
            torch.testing.assert_close(got, alone.get_parameter(name), rtol=1e-4, atol=1e-5)
    if kind == "fsdp":
        assert all("pass the model that FSDP returned" in result["inner"] for result in results)
    else:
        assert [result["state"] for result in results] == [7, 7]


@pytest.mark.parametrize(("kind", "fix"), [("flat", "use_orig_params=True"), ("late", "before accelerator.prepare")])
def test_wrapped_in_a_way_that_cannot_hold_is_refused(kind: str, fix: str, tmp_path: Path) -> None:
    assert all(fix in result["refused"] for result in together(kind, tmp_path))
