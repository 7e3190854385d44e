"""Give every reader thousands of damaged files; each must be read, or refused by one of our errors, soon.

    python benchmarks/security/mutations.py --work FOLDER [--files 6000] [--seed 0] [--only READER ...]

Each reader has whole files, of which one is damaged at a time (`mutators.py`; drawn from the seed and the number of the
file, so that each can be made again). The reader is then called as commands call it. Counted are

- tracebacks: anything raised that is neither an error of Unteach nor an OSError (the command line tells them in words);
- hangs: more than `SECONDS` for one file;
- code that was run: pickles, tags and modules in the files make a file when they are run;
- deaths of the process, and messages with a line of more than 1,500 characters.

The readers run in processes forked from this one, which has loaded torch and diffusers.
"""

import argparse
import contextlib
import gzip
import importlib.util
import io
import json
import logging
import os
import random
import shutil
import signal
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from benchmarks.security import mutators
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.guard import checkpoints
from tests.records import guarded, learned
from tests.records.test_erasure import full
from tests.toys import build

from unteach.attack.sweep import Cell
from unteach.commands import guard as guarding
from unteach.commands.erase import Erase
from unteach.commands.learn import Learn
from unteach.core import state
from unteach.core.loop import Loop
from unteach.core.run import seconds_spent
from unteach.data import files
from unteach.data.captioned import captioned
from unteach.data.concepts import ConceptSet
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.loading import inspect
from unteach.diffusion.model import load
from unteach.diffusion.sample import Chunk, _Store
from unteach.errors import UnteachError, shorten
from unteach.evaluate.image_cache import ImageStore
from unteach.guard import signing
from unteach.guard import verify as checking
from unteach.guard.manifest import FreezeManifest
from unteach.guard.verify.reader import Safetensors
from unteach.records import environment
from unteach.records.attack import Curve, Relearning, recovery
from unteach.records.erasure import Results
from unteach.records.learning import LearningRun
from unteach.records.mask import Mask
from unteach.report import model_card

OUT = Path(__file__).resolve().parents[1] / "results" / "security_mutations.json"
SECONDS = 20.0
"""A file that takes longer is a hang."""
LONGEST = 1500
"""Characters of a line of a message."""

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        name: of it.
        folder: whole files; a copy of it is damaged.
        files: which of them are damaged.
        read: is given the folder with the damaged file.
        damage: what knows the format; raw bytes are damaged too.
        weight: share of all files.
    """

    name: str
    folder: Path
    files: Sequence[str]
    read: Callable[[Path], object]
    damage: Damage | None = None
    weight: float = 1.0


@dataclass
class Tally:
    """What came of one reader's files."""

    files: int = 0
    read: int = 0
    refused: int = 0
    longest: int = 0
    slowest: float = 0.0
    bad: list[dict[str, Any]] = field(default_factory=list)


def place(work: Path, name: str, contents: Mapping[str, bytes]) -> Path:
    """A folder with these files."""
    folder = work / "whole" / name
    for file, data in contents.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    return folder


def rand(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(kind: str = "PNG") -> bytes:
    made = io.BytesIO()
    Image.fromarray(rand(16, 16, 3)).save(made, kind)
    return made.getvalue()


def readers(work: Path) -> list[Reader]:
    """All of them; what they read is made once."""
    return [*_texts(work), *_records(work), *_states(work), *_data(work), *_models(work)]


def _texts(work: Path) -> Iterator[Reader]:
    """YAML, CSV, configurations of the commands."""
    concepts = (
        b"concepts:\n- target: bomb\n  anchor: balloon\n  kind: object\n  names: [grenade]\n"
        b"  prompts: ['a {}', 'a photo of a {}']\n  retain: [a cat, a dog]\n"
        b"- {target: fluent, anchor: noto, kind: style}\n"
    )
    table = b"target,anchor,kind,retain\nbomb,balloon,object,a cat;a dog\nfluent,noto,style,\n"
    erase = (
        b"target: twemoji\nanchor: openmoji\nkind: style\nprompts: ['a {} dog']\nmethod: uce\nseed: 3\n"
        b"settings: {lam: 0.5}\ndevice: cpu\ndtype: float32\nthreads: 1\n"
    )
    grid = (
        b"title: A grid\nstream: digits\nstream_options: {tasks: 5}\nscenario: class\nnetwork: mlp\n"
        b"network_options: {hidden: [8]}\ntraining: {epochs: 1, lr: 0.1}\nmethods: [er, {method: der++, label: d}]\n"
        b"plugins: [none, {plug-in: reweight, ratio: 0.5}]\nseeds: [0, 1]\n"
    )
    guard = (
        b"illegal: [fxemoji]\ninnocent: [emojione-v1]\nmethod: freezeasguard\nseed: 1\n"
        b"settings: {rho: 0.3}\npolicy: p\n"
    )
    yaml = mutators.as_yaml
    yield Reader(
        "concepts.yaml", place(work, "concepts", {"c.yaml": concepts}), ["c.yaml"],
        lambda f: ConceptSet.load(f / "c.yaml").pairs(), yaml, 1.5,
    )  # fmt: skip
    yield Reader(
        "concepts.csv", place(work, "table", {"c.csv": table}), ["c.csv"],
        lambda f: ConceptSet.load(f / "c.csv").pairs(), mutators.as_table, 1.0,
    )  # fmt: skip
    yield Reader(
        "erase --config", place(work, "erase", {"c.yaml": erase}), ["c.yaml"],
        lambda f: Erase(config=f / "c.yaml", dry_run=True).resolve().to_dict(), yaml, 1.5,
    )  # fmt: skip
    yield Reader(
        "learn --config", place(work, "grid", {"c.yaml": grid}), ["c.yaml"],
        lambda f: [state.fingerprint(vars(j)) for j in Learn(config=f / "c.yaml").plan().jobs],
        yaml, 1.5,
    )  # fmt: skip
    yield Reader(
        "guard learn --config", place(work, "guard", {"c.yaml": guard}), ["c.yaml"],
        lambda f: guarding.Learn(config=f / "c.yaml", dry_run=True).resolve().to_dict(), yaml, 1.0,
    )  # fmt: skip

    def settings(folder: Path) -> object:
        text = (folder / "s.txt").read_bytes().replace(b"\0", b"").decode("utf-8", "surrogateescape")
        options = Erase(target="twemoji", anchor="openmoji", method="uce", settings=((text,),), dry_run=True)
        return options.resolve().to_dict()

    yield Reader("erase --set", place(work, "set", {"s.txt": b"lam=0.5"}), ["s.txt"], settings, None, 0.7)


def _records(work: Path) -> Iterator[Reader]:
    """Results, masks, attacks, manifests, signatures, keys."""
    json_ = mutators.as_json
    made = {
        "results.json": (json.dumps(full().to_json()).encode(), lambda f: Results.load(f / "results.json")),
        "run.json": (json.dumps(learned.run().to_json()).encode(), lambda f: LearningRun.load(f / "run.json")),
        "mask.json": (json.dumps(guarded.mask()).encode(), lambda f: Mask.load(f / "mask.json")),
        "relearning.json": (
            json.dumps(guarded.attacks(guarded.mask())).encode(),
            lambda f: Relearning.load(f / "relearning.json"),
        ),
        "cost.json": (b'{"seconds": 2.5}', seconds_spent),
    }
    for name, (data, read) in made.items():
        yield Reader(name, place(work, name, {name: data}), [name], read, json_, 0.3 if name == "cost.json" else 1.0)
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4)}
    manifest = FreezeManifest.from_model(tensors, ["a.weight"], created="2026-01-01T00:00:00+00:00")
    folder = place(work, "manifest", {})
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "key.pem").exists():
        signing.keygen(folder / "key.pem", folder / "key.pub")
    manifest.save(folder / "manifest.json")
    signing.sign(manifest, folder / "key.pem").save(folder / "manifest.json.sig")

    def signed(f: Path) -> object:
        return signing.verify(FreezeManifest.load(f / "manifest.json"), f / "manifest.json.sig", f / "key.pub")

    yield Reader("manifest.json", folder, ["manifest.json"], signed, json_, 1.5)
    yield Reader("manifest.json.sig", folder, ["manifest.json.sig"], signed, json_, 1.0)
    yield Reader("public key", folder, ["key.pub"], signed, None, 0.5)
    yield Reader("private key", folder, ["key.pem"], lambda f: signing.load_private(f / "key.pem"), None, 0.5)


def _loop(folder: Path) -> object:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)

    def step(_: object) -> Mapping[str, Any]:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {"loss": loss}

    return Loop(
        steps=4, seed=0, params={"w": weight}, state={"opt": optimizer}, config={"a": [1, {"b": 2}]}, out=folder,
        save_every=2, log_every=1,
    ).run(step)  # fmt: skip


def _delta(path: Path) -> object:
    delta = WeightDelta.load(path)
    return model_card(delta.meta), delta.norm()


def _states(work: Path) -> Iterator[Reader]:
    """Checkpoints, logs, configurations of run folders, deltas, safetensors, adapters."""
    run = work / "whole" / "loop"
    run.mkdir(parents=True, exist_ok=True)
    _loop(run)
    tensors = mutators.as_safetensors
    ours = mutators.as_ours
    yield Reader("state.safetensors", run, ["state.safetensors"], _loop, tensors, 0.7)
    yield Reader("state.safetensors, signed anew", run, ["state.safetensors"], _loop, ours, 1.0)
    yield Reader("log.jsonl", run, ["log.jsonl"], _loop, mutators.as_lines, 0.7)
    meta = {"base": "d" * 64, "family": "sd", "method": {"method": "uce"}, "concepts": []}
    folder = place(work, "delta", {})
    folder.mkdir(parents=True, exist_ok=True)
    WeightDelta({"conv_in.bias": torch.ones(4), "conv_in.weight": torch.ones(4, 2)}, meta).save(
        folder / "d.safetensors"
    )
    yield Reader("delta", folder, ["d.safetensors"], lambda f: WeightDelta.load(f / "d.safetensors"), tensors, 0.7)
    yield Reader("delta, signed anew", folder, ["d.safetensors"], lambda f: _delta(f / "d.safetensors"), ours, 1.0)

    def opened(f: Path) -> object:
        with Safetensors(f / "d.safetensors") as file:
            return [entry for entry in file.entries]

    yield Reader("safetensors", folder, ["d.safetensors"], opened, tensors, 1.0)
    kept = Erase(target="twemoji", anchor="openmoji", method="uce", out=Path("run"))
    config = json.dumps(kept.resolve().to_dict()).encode()

    def resumed(f: Path) -> object:
        return Erase(target="twemoji", anchor="openmoji", method="uce", out=f).resolve().run().known

    yield from _stores(work)
    yield Reader(
        "config.json of a run", place(work, "config", {"config.json": config}), ["config.json"], resumed,
        mutators.as_json, 0.7,
    )  # fmt: skip


def _stores(work: Path) -> Iterator[Reader]:
    """What attacks and drawing keep of finished parts."""
    cell = {"domain": "d", "seed": 0}
    curve = Curve(
        mode="full", honoured=True, frozen="f" * 64, frozen_tensors=1, trained_tensors=2, trained_parameters=9, steps=2,
        learning_rate=1e-3, batch_size=2, rank=0, seed=0, data=("d", "a" * 64), probes={"d": "b" * 64}, at=(0, 1, 2),
        losses={"d": (3.0, 2.0, 1.0)}, diverged=False, seconds=1.0,
    )  # fmt: skip
    name = Cell.path(Path(), cell).name
    data = json.dumps({"cell": cell, "curve": asdict(curve)}).encode()

    def stored(f: Path) -> object:
        found = Cell.load(f, cell)
        return found and recovery(found.curve, found.curve, "d")

    yield Reader("cell of an attack", place(work, "cell", {name: data}), [name], stored, mutators.as_json, 0.7)
    config = {"prompts": ["a"], "seeds": [1], "settings": {"steps": 2}}
    pictures = work / "whole" / "images"
    made = ImageStore(pictures, config)
    made.fetch([("a", 1)], lambda prompts, _: torch.zeros(len(prompts), 3, 4, 4), chunk=1)
    file = next(made.folder.glob("*.safetensors")).relative_to(pictures).as_posix() if made.folder else ""
    yield Reader("kept pictures", pictures, [file], lambda f: ImageStore(f, config), mutators.as_ours, 0.5)
    samples = work / "whole" / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    store = _Store(samples, config)
    store.add(Chunk((0,), torch.zeros(1, 3, 4, 4)))

    def finished(f: Path) -> object:
        return list(_Store(f, config).finished())

    yield Reader("sample.json", samples, ["sample.json"], finished, mutators.as_json, 0.5)
    rows = [path.name for path in samples.glob("rows-*.safetensors")]
    yield Reader("kept samples", samples, rows, finished, mutators.as_ours, 0.5)


def _data(work: Path) -> Iterator[Reader]:
    """Pictures with captions, and the formats of data sets."""
    captions = b"".join(b'{"file_name": "%d.png", "text": "a thing %d"}\n' % (i, i) for i in range(3))
    pictures = place(work, "captions", {"metadata.jsonl": captions, **{f"{i}.png": picture() for i in range(3)}})
    yield Reader("captions", pictures, ["metadata.jsonl"], lambda f: captioned(f, (16, 16)), mutators.as_lines, 1.0)
    yield Reader("a picture", pictures, ["0.png"], lambda f: captioned(f, (16, 16)), None, 1.0)
    kinds = (("png", "PNG"), ("jpg", "JPEG"), ("bmp", "BMP"), ("webp", "WEBP"), ("gif", "GIF"))
    places = [f"{part}/{name}" for part in ("train", "test") for name in "ab"]
    contents = {f"{at}/{i}.{kind}": picture(form) for at in places for i, (kind, form) in enumerate(kinds)}
    folder = place(work, "folder", contents)
    each = [f"train/a/{i}.{kind}" for i, kind in enumerate(("png", "jpg", "bmp", "webp", "gif"))]
    yield Reader("folder of pictures", folder, each, lambda f: files.image_folder(f, 16), None, 1.0)

    def idx(data: Any) -> bytes:
        return struct.pack(f">HBB{data.ndim}I", 0, 8, data.ndim, *data.shape) + data.tobytes()

    parts = {
        f"{part}-{what}": gzip.compress(idx(data)) if packed else idx(data)
        for part, count in (("train", 12), ("t10k", 5))
        for what, data, packed in (
            ("images-idx3-ubyte", rand(count, 28, 28), False),
            ("labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8), True),
        )
    }
    yield Reader("IDX", place(work, "idx", parts), list(parts), files.fashion_mnist, None, 1.0)

    def rows(count: int) -> bytes:
        return b"".join(bytes([i % 10]) + rand(3072, seed=i).tobytes() for i in range(count))

    names = b"\n".join(b"class %d" % i for i in range(10))
    batches = {f"data_batch_{i}.bin": rows(4) for i in range(1, 6)} | {"test_batch.bin": rows(3)}
    yield Reader(
        "CIFAR", place(work, "cifar", {**batches, "batches.meta.txt": names}), ["data_batch_1.bin", "batches.meta.txt"],
        files.cifar10, None, 1.0,
    )  # fmt: skip
    arrays = {
        "x_train": rand(6, 8, 8, 3),
        "y_train": np.arange(6) % 2,
        "x_test": rand(4, 8, 8, 3),
        "y_test": np.arange(4) % 2,
    }
    arrays = {k: v.astype(np.int64) if k.endswith("_y") else v for k, v in arrays.items()}
    held = place(work, "arrays", {})
    held.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: torch.from_numpy(v) for k, v in arrays.items()}, held / "a.safetensors", {"class_names": '["a", "b"]'}
    )
    yield Reader(
        "arrays.safetensors", held, ["a.safetensors"], lambda f: files.arrays(f / "a.safetensors"),
        mutators.as_safetensors, 1.0,
    )  # fmt: skip
    if importlib.util.find_spec("pyarrow") is not None:
        yield _parquet(work)


def _parquet(work: Path) -> Reader:
    import pyarrow
    import pyarrow.parquet

    contents = {}
    for part, count in (("train", 6), ("test", 3)):
        made = io.BytesIO()
        rows = {
            "img": [{"bytes": picture(), "path": ""} for _ in range(count)],
            "label": [i % 10 for i in range(count)],
        }
        pyarrow.parquet.write_table(pyarrow.table(rows), made)
        contents[f"{part}-00000-of-00001.parquet"] = made.getvalue()
    return Reader(
        "parquet", place(work, "parquet", contents), ["train-00000-of-00001.parquet"], files.cifar10, None, 0.7
    )


def _models(work: Path) -> Iterator[Reader]:
    """A pipeline to load, and uploads to judge."""
    base = build("sd", work / "whole" / "pipeline")
    small = [
        p.relative_to(base).as_posix() for p in sorted(base.rglob("*")) if p.is_file() and p.suffix in (".json", ".txt")
    ]
    weights = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]

    def loaded(f: Path) -> object:
        found = inspect(f)
        return found, load(f)

    def as_text(data: bytes, draw: random.Random) -> bytes:
        try:
            return mutators.as_json(data, draw)
        except ValueError:
            return mutators.as_lines(data, draw)

    configs = [name for name in small if not name.startswith("tokenizer") and name != "model_index.json"]
    yield Reader("model_index.json", base, ["model_index.json"], inspect, as_text, 1.0)
    yield Reader("loading: model_index.json", base, ["model_index.json"], loaded, as_text, 0.3)
    yield Reader("loading: configurations", base, configs, loaded, as_text, 0.5)
    yield Reader("loading: tokenizer", base, [n for n in small if n.startswith("tokenizer")], loaded, as_text, 0.4)
    yield Reader("loading: weights", base, weights, loaded, mutators.as_safetensors, 0.4)
    tensors = load_file(base / checkpoints.WEIGHTS)
    held = FreezeManifest.from_model(tensors, checkpoints.HELD, created="2026-01-01T00:00:00+00:00")

    def judged(name: str) -> Callable[[Path], object]:
        return lambda f: checking.verify(base, f / name, held)

    adapter = work / "whole" / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    key = f"unet.{checkpoints.FREE}.lora"
    shape = tensors[f"{checkpoints.FREE}.weight"].shape
    pair = {f"{key}_A.weight": torch.ones(2, shape[1]), f"{key}_B.weight": torch.ones(shape[0], 2)}
    save_file(pair, adapter / "pytorch_lora_weights.safetensors")
    save_file(tensors, adapter / "model.safetensors")
    yield Reader(
        "verify: an adapter", adapter, ["pytorch_lora_weights.safetensors"],
        judged("pytorch_lora_weights.safetensors"), mutators.as_safetensors, 1.5,
    )  # fmt: skip
    yield Reader(
        "verify: weights", adapter, ["model.safetensors"], judged("model.safetensors"), mutators.as_safetensors, 1.5
    )
    yield Reader("verify: a pipeline", base, [*small, *weights], judged(""), None, 1.0)


class Hang(BaseException):
    """The time for one file is over."""


def _over(*_: object) -> None:
    raise Hang


def one(reader: Reader, number: int, seed: int, place: Path) -> dict[str, Any] | None:
    """Damage one file and read; what was wrong with the outcome, None when it is read, {} when it is refused well."""
    draw = random.Random(f"{reader.name} {seed} {number}")
    file = draw.choice(list(reader.files))
    canary = place.parent / "canary"
    whole = (reader.folder / file).read_bytes()
    if reader.damage is not None and draw.random() < 0.6:
        data = reader.damage(whole, draw)
    else:
        data = mutators.raw(whole, draw, canary)
    target = place / file
    target.unlink(missing_ok=True)
    target.write_bytes(data)
    target.chmod((reader.folder / file).stat().st_mode & 0o777)
    begin, wrong, told = time.monotonic(), "", ""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    outcome: dict[str, Any] | None = None
    try:
        reader.read(place)
    except UnteachError as error:
        outcome, told = {}, str(error)
    except OSError as error:
        outcome, told = {}, shorten(str(error))  # as the command line does
    except Hang:
        wrong = "hang"
    except BaseException as error:  # pyo3's panics are no Exception
        wrong, told = f"traceback: {type(error).__name__}", str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if canary.exists():
        canary.rmdir()
        wrong = "code was run"
    longest = max(map(len, told.split("\n")))
    if longest > LONGEST and not wrong:
        wrong = f"a message of {longest} characters in a line"
    seconds = time.monotonic() - begin
    if wrong:
        outcome = {"number": number, "file": file, "wrong": wrong, "said": told[:200]}
    return None if outcome is None and seconds == 0 else {"seconds": seconds, "told": longest, "outcome": outcome}


def try_reader(reader: Reader, count: int, seed: int, work: Path, first: int = 0) -> Tally:
    """``count`` damaged files in forked processes; a process that dies is told and the rest goes on in another one."""
    tally, number = Tally(), first
    while number < first + count:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read_end)
            _work(reader, range(number, first + count), seed, work, write_end)
        os.close(write_end)
        with os.fdopen(read_end, encoding="utf-8") as lines:
            for line in lines:
                _note(tally, json.loads(line))
                number += 1
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0 and number < first + count:
            tally.files += 1
            tally.bad.append({"number": number, "wrong": f"the process died with {code}"})
            number += 1
    return tally


def sound(reader: Reader, work: Path) -> None:
    """Raise unless the whole files are read: else nothing that is refused would mean anything."""
    folder = work / "sound"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(reader.folder, folder)
    try:
        reader.read(folder)
    except UnteachError as error:
        raise SystemExit(f"the whole files of '{reader.name}' are refused: {error}") from error


def _note(tally: Tally, record: dict[str, Any]) -> None:
    tally.files += 1
    tally.slowest, tally.longest = max(tally.slowest, record["seconds"]), max(tally.longest, record["told"])
    if record["outcome"] is None:
        tally.read += 1
    elif record["outcome"]:
        tally.bad.append(record["outcome"])
    else:
        tally.refused += 1


def _work(reader: Reader, numbers: Sequence[int], seed: int, work: Path, write_end: int) -> None:
    """In the forked process: one file after another, a line for each."""
    code = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        torch.set_num_threads(1)
        signal.signal(signal.SIGALRM, _over)
        scratch = work / "scratch" / reader.name.replace("/", "-").replace(" ", "-")
        with os.fdopen(write_end, "w", encoding="utf-8") as out:
            for number in numbers:
                shutil.rmtree(scratch, ignore_errors=True)
                shutil.copytree(reader.folder, scratch / "files", copy_function=_linked)
                out.write(json.dumps(one(reader, number, seed, scratch / "files")) + "\n")
                out.flush()
            shutil.rmtree(scratch, ignore_errors=True)
        code = 0
    finally:
        os._exit(code)


def _linked(source: str, target: str) -> None:
    """A hard link, which costs nothing; the damaged file is written anew, logs and checkpoints are appended to."""
    if Path(source).suffix in (".jsonl", ".json", ".yaml"):
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def main() -> int:
    parser = argparse.ArgumentParser(description="give every reader damaged files")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--files", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--without", help="leave out readers whose name begins so")
    parser.add_argument("--number", type=int, help="this damaged file of the one reader of --only, in this process")
    given = parser.parse_args()
    begin, work = time.monotonic(), given.work.resolve()
    every = readers(work)
    chosen = [reader for reader in every if not given.only or reader.name in given.only]
    chosen = [reader for reader in chosen if not (given.without and reader.name.startswith(given.without))]
    for reader in chosen:
        sound(reader, work)
    if given.number is not None:
        folder = work / "one" / "files"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(chosen[0].folder, folder)
        signal.signal(signal.SIGALRM, _over)
        with contextlib.suppress(KeyboardInterrupt):
            print(one(chosen[0], given.number, given.seed, folder), folder)
        chosen[0].read(folder)
        return 0
    table: dict[str, Any] = {}
    bad: list[dict[str, Any]] = []
    for reader in chosen:
        count = round(given.files * reader.weight / sum(each.weight for each in every)) + 1
        start = time.monotonic()
        tally = try_reader(reader, count, given.seed, work)
        kinds = Counter(each["wrong"] for each in tally.bad)
        table[reader.name] = {
            "files": tally.files, "read": tally.read, "refused": tally.refused, "wrong": dict(sorted(kinds.items())),
            "slowest, seconds": round(tally.slowest, 2), "longest line": tally.longest,
        }  # fmt: skip
        bad += [{"reader": reader.name, **each} for each in tally.bad]
        print(f"{reader.name:<28} {time.monotonic() - start:6.1f} s {table[reader.name]}", flush=True)
    total = sum(row["files"] for row in table.values())
    record = {
        "command": f"python benchmarks/security/mutations.py --work FOLDER --files {given.files} --seed {given.seed}",
        "config": {"files": given.files, "seed": given.seed, "hang, seconds": SECONDS, "longest line": LONGEST},
        "files": total,
        "tracebacks": sum(each["wrong"].startswith("traceback") for each in bad),
        "hangs": sum(each["wrong"] == "hang" for each in bad),
        "code run": sum(each["wrong"] == "code was run" for each in bad),
        "deaths": sum("died" in each["wrong"] for each in bad),
        "long messages": sum("message" in each["wrong"] for each in bad),
        "readers": table,
        "wrong": bad[:200],
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "environment": vars(environment.collect()),
    }
    if chosen == every:
        state.write_json(OUT, record)
    counts = {key: record[key] for key in ("files", "tracebacks", "hangs", "code run", "deaths", "long messages")}
    print(json.dumps(counts), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
