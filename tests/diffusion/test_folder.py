"""H2, M3, M4, F4: a folder's parts are all checked, it runs no code and leads nowhere else, and nothing is random."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import toys

from unteach.canvas import model_path
from unteach.diffusion import Model, load
from unteach.diffusion.foreign import foreign
from unteach.diffusion.loading import inspect
from unteach.errors import ConfigError, ModelError

Toy = Callable[[str], Path]
MARK = "unteach_test_mark"
CODE = f"import sys\nsys.{MARK} = True\n"


@pytest.fixture
def folder(toy: Toy, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy("sd"), tmp_path / "toy"))


def edit(folder: Path, name: str, **changes: object) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(folder: Path, message: str) -> None:
    for use in (inspect, load):
        with pytest.raises(ModelError, match=message):
            use(folder)
    assert not hasattr(sys, MARK)


# H2: code


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusers.py",
        "text_encoder/transformers.py",
        "tokenizer/transformers.py",
        "scheduler/diffusers.py",
        "model_index.py",
        "deep/er/still.PY",
        "unet/diffusers.pyc",
        "vae/fast.so",
        ".hidden/x.py",
    ],
)
def test_h2_code_anywhere_below_the_folder_is_refused(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(CODE)
    refused(folder, f"brings code.*found: {name}")


OTHER_CLASSES: dict[str, tuple[dict[str, object], str]] = {
    "a nested pipeline": ({"scheduler": ["diffusers", "DiffusionPipeline"]}, "scheduler.*not of a known kind"),
    "a nested pair": ({"scheduler": ["diffusers", ["pipeline", "P"]]}, "scheduler.*not of a known kind"),
    "a class pair": ({"_class_name": ["pipeline", "P"]}, "not of a known model family"),
    "another library": ({"unet": ["pipeline", "UNet2DConditionModel"]}, "outside diffusers and transformers"),
    "another tokenizer": ({"tokenizer": ["transformers", "AutoTokenizer"]}, "tokenizer' of class CLIPTokenizer"),
    "another part": ({"extra": ["transformers", "CLIPTextModel"]}, "a part 'extra' that a StableDiffusionPipeline"),
    "three entries": ({"vae": ["diffusers", "AutoencoderKL", "x"]}, "outside diffusers and transformers"),
    "no tokenizer": ({"tokenizer": [None, None]}, "needs a 'tokenizer'"),
    "no scheduler": ({"scheduler": None}, "scheduler.*not of a known kind; found: None"),
}


@pytest.mark.parametrize("case", OTHER_CLASSES)
def test_h2_only_known_classes(case: str, folder: Path) -> None:
    changes, message = OTHER_CLASSES[case]
    edit(folder, "model_index.json", **changes)
    refused(folder, message)


CONFIGS: dict[str, tuple[str, dict[str, object], str]] = {
    "nested class": ("scheduler/scheduler_config.json", {"_class_name": ["pipeline", "P"]}, "another class"),
    "scheduler": ("scheduler/scheduler_config.json", {"_class_name": "DiffusionPipeline"}, "another class"),
    "U-Net": ("unet/config.json", {"_class_name": "UNet2DModel"}, "must be UNet2DConditionModel"),
    "code": ("text_encoder/config.json", {"auto_map": {"AutoModel": "m.M"}}, "other code or files.*auto_map"),
    "quantiser": ("unet/config.json", {"quantization_config": {"quant_method": "x"}}, "quantization_config"),
    "vocabulary": ("tokenizer/tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "other code or files.*vocab_file"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_h2_configurations_ask_for_nothing_else(case: str, folder: Path) -> None:
    name, changes, message = CONFIGS[case]
    edit(folder, name, **changes)
    refused(folder, message)


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/x.safetensors", "sub/x.safetensors", "..\\x.safetensors"])
def test_h2_a_shard_index_stays_in_its_folder(shard: str, folder: Path) -> None:
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
    refused(folder, "leads out of its folder")


def test_h2_links_stay_in_the_folder(folder: Path, tmp_path: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    outside = Path(shutil.move(weights, tmp_path / "elsewhere.safetensors"))
    weights.symlink_to(outside)
    refused(folder, "links that lead out of it; found: unet/diffusion_pytorch_model.safetensors; .*cp -rL")
    weights.unlink()
    shutil.move(outside, weights)
    (folder / "more").symlink_to(tmp_path)
    refused(folder, "links that lead out of it; found: more")
    (folder / "more").unlink()
    (folder / "same").symlink_to("unet")
    load(folder)


def test_a_download_caches_own_links_are_fine(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    for i, file in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        shutil.move(file, blobs / str(i))
        file.symlink_to(os.path.relpath(blobs / str(i), file.parent))
    assert load(snapshot).digest() == load(folder).digest()


def test_m3_a_part_that_is_an_adapter_is_refused(folder: Path) -> None:
    weights = folder / "text_encoder" / "model.safetensors"
    shutil.copy(weights, folder / "text_encoder" / "adapter_model.safetensors")
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    (folder / "text_encoder" / "config.json").unlink()
    refused(folder, "'text_encoder' of .* is an adapter.*adapter_config.json")


# M4: nothing random, no traceback


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_m4_h3_a_tensor_that_the_file_lacks_is_not_made_up(part: str, folder: Path) -> None:
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    gone = sorted(tensors)[3]
    save_file({name: value for name, value in tensors.items() if name != gone}, file, {"format": "pt"})
    with pytest.raises(
        ModelError, match=f"'{part}' in .* lacks 1 of its tensors: they would be random; found: missing"
    ):
        load(folder)


def test_h3_foreign_names_are_not_made_up(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    save_file({f"other.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"'text_encoder' in .* lacks 36 of its tensors"):
        load(folder)


def test_h3_the_bundled_models_tensors_are_its_files() -> None:
    model = load(model_path())
    for part in model.conventions.components:
        (file,) = (model_path() / part).glob("*.safetensors")
        own, stored = getattr(model.pipe, part).state_dict(), load_file(file)
        plain = {name.removeprefix("text_model."): value for name, value in stored.items()}
        named = {name.removeprefix("text_model."): value for name, value in own.items()}
        named = {name: value for name, value in named.items() if not name.endswith("position_ids")}
        assert named.keys() == plain.keys() and len(plain) > 30
        assert all(torch.equal(named[name], value.float()) for name, value in plain.items())


def shallow(folder: Path) -> None:
    edit(folder, "unet/config.json", block_out_channels=[8])


def pickled(folder: Path) -> None:
    edit(folder, "text_encoder/config.json", _attn_implementation="flash_attention_2", attn_implementation="sdpa_x")


def typed(folder: Path) -> None:
    edit(folder, "text_encoder/config.json", hidden_size="sixteen")


def panic(folder: Path) -> None:
    """What makes tokenizers' Rust code panic rather than raise."""
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"] = {"type": "ByteLevel", "add_prefix_space": 3}
    content["added_tokens"] = [{"id": 2**31, "content": ""}] * 3
    file.write_text(json.dumps(content))


def deep(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("[" * 100_000 + "]" * 100_000)


def overlong(folder: Path) -> None:
    edit(folder, "scheduler/scheduler_config.json", num_train_timesteps=-3)


def tall(folder: Path) -> None:
    edit(folder, "text_encoder/config.json", num_hidden_layers=100_000)


def taller(folder: Path) -> None:
    edit(folder, "unet/config.json", layers_per_block=[1, [100_000]])


@pytest.mark.parametrize("spoil", [tall, taller])
def test_more_layers_than_weights_are_not_built(spoil: Callable[[Path], None], folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match="more layers than its part has tensors; found: 100000"):
        inspect(folder)


@pytest.mark.parametrize("spoil", [shallow, pickled, typed, panic, deep, overlong])
def test_m4_what_others_raise_becomes_our_error(spoil: Callable[[Path], None], folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=str(folder)):
        load(folder)


class PanicException(BaseException):
    """Named and derived as pyo3's is, which cannot be made from Python."""


def test_m4_panics_are_errors_and_ctrl_c_is_not() -> None:
    for error in (PanicException("a\nb"), RecursionError("deep"), ImportError("\n no such")):
        with (
            pytest.raises(ModelError, match=r"broken; found: \w+: (a|deep|no such); to do: mend"),
            foreign("broken", fix="mend"),
        ):
            raise error
    for error in (KeyboardInterrupt(), SystemExit(3), GeneratorExit()):
        with pytest.raises(type(error)), foreign("broken", fix="mend"):
            raise error
    with pytest.raises(ConfigError, match="ours"), foreign("broken", fix="mend"):
        raise ConfigError("ours")


# F4: the tokenizer


def without(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / "tokenizer" / name).unlink(missing_ok=True)

    return spoil


def endless(folder: Path) -> None:
    edit(folder, "tokenizer/tokenizer_config.json", model_max_length=int(1e30))


def too_long(folder: Path) -> None:
    edit(folder, "tokenizer/tokenizer_config.json", model_max_length=toys.LENGTH + 1)


def without_words(folder: Path) -> None:
    """An empty vocabulary, as transformers makes one where files are missing."""
    without("tokenizer.json")(folder)
    (folder / "tokenizer" / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")


def another(folder: Path) -> None:
    """The files of a model with a larger vocabulary."""
    without("tokenizer.json")(folder)
    file = folder / "tokenizer" / "vocab.json"
    if not file.exists():
        toys.tokenizer(folder / "tokenizer")
    vocabulary = json.loads(file.read_text())
    ends = ["<|startoftext|>", "<|endoftext|>"]
    words = {
        name: i for i, name in enumerate([*(k for k in vocabulary if k not in ends), "new</w>", "words</w>", *ends])
    }
    file.write_text(json.dumps(words))


TOKENIZERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no vocabulary": (without("tokenizer.json", "vocab.json", "merges.txt"), "vocab.json and merges.txt missing"),
    "no merges": (without("tokenizer.json", "merges.txt"), "merges.txt missing|vocab.json and merges.txt missing"),
    "no folder": (lambda f: shutil.rmtree(f / "tokenizer"), "vocab.json and merges.txt missing"),
    "endless": (endless, r"no length .*model_max_length 1e\+30, the encoder reads 24"),
    "too long": (too_long, "no length .*model_max_length 25, the encoder reads 24"),
    "no words": (without_words, "does not tell words apart"),
    "another's": (another, r"ids that have no embedding; found: ids up to \d+"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_f4_a_tokenizer_is_checked(case: str, folder: Path) -> None:
    spoil, message = TOKENIZERS[case]
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_f4_either_kind_of_tokenizer_files_will_do(folder: Path, tmp_path: Path) -> None:
    whole = load(folder)
    toys.tokenizer(tmp_path / "files")
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tmp_path / "files" / name, folder / "tokenizer" / name)
    again = load(folder)
    assert torch.equal(again.encode(["a noto dog"]).hidden, whole.encode(["a noto dog"]).hidden)


def test_f4_a_pipeline_in_memory_is_checked_too(toy: Toy) -> None:
    for kind, part in (("sd", "tokenizer"), ("sdxl", "tokenizer_2")):
        pipe: Any = load(toy(kind)).pipe
        tokenizer = getattr(pipe, part)
        tokenizer.add_tokens(["<new>"])
        with pytest.raises(ModelError, match=f"'{part}' is not the one of its text encoder"):
            Model(pipe)
        setattr(pipe, part, None)
        with pytest.raises(ModelError, match=f"no '{part}'; found: NoneType"):
            Model(pipe)
