"""A signature holds for one manifest and one key; everything else is refused with the reason."""

import builtins
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from unteach.errors import CheckpointError, ConfigError, MissingExtraError, UnteachError
from unteach.guard.manifest import FreezeManifest
from unteach.guard.signing import Signature, is_encrypted, key_id, keygen, load_private, load_public, sign, verify

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4)}


def policy(*frozen: str, name: str = "p") -> FreezeManifest:
    return FreezeManifest.from_model(TENSORS, frozen, policy=name, created="2026-01-01T00:00:00+00:00")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    keygen(tmp_path / "key.pem", tmp_path / "key.pub")
    return tmp_path / "key.pem", tmp_path / "key.pub"


def test_a_signed_manifest_is_recognised_after_a_trip_through_files(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    manifest = policy("a.weight")
    signature = sign(manifest, private)
    path = signature.save(tmp_path / "manifest.sig.json")
    again = FreezeManifest.load(manifest.save(tmp_path / "manifest.json"))
    assert verify(again, path, public) == verify(again, signature, load_public(public)) == signature.key
    assert signature.key == key_id(load_private(private).public_key()) and len(bytes.fromhex(signature.signature)) == 64
    assert sign(manifest, load_private(private)) == signature  # Ed25519 draws nothing


def test_the_signature_is_the_plain_ed25519_of_the_canonical_bytes(keys: tuple[Path, Path]) -> None:
    manifest = policy("a.weight")
    signature = sign(manifest, keys[0])
    key = serialization.load_pem_public_key(keys[1].read_bytes())
    assert isinstance(key, ed25519.Ed25519PublicKey)
    key.verify(bytes.fromhex(signature.signature), b"unteach freeze manifest, version 1\n" + manifest.canonical())


def test_key_files(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        keygen(tmp_path / "k.pem", tmp_path / "k.pub")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in (tmp_path / "k.pem").read_bytes()
    before = (tmp_path / "k.pem").read_bytes()
    for private, public in (("k.pem", "new.pub"), ("new.pem", "k.pub"), ("same", "same")):
        with pytest.raises(ConfigError):
            keygen(tmp_path / private, tmp_path / public)
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="exists"):
        keygen(tmp_path / "dangling", tmp_path / "new.pub")
    assert (tmp_path / "k.pem").read_bytes() == before and not (tmp_path / "new.pem").exists()
    with pytest.raises(ConfigError, match="empty"):
        keygen(tmp_path / "x", tmp_path / "y", password=b"")


def test_a_password_protects_the_key(tmp_path: Path) -> None:
    keygen(tmp_path / "k.pem", tmp_path / "k.pub", password=b"horse")
    assert b"ENCRYPTED" in (tmp_path / "k.pem").read_bytes()
    assert verify(policy(), sign(policy(), tmp_path / "k.pem", password=b"horse"), tmp_path / "k.pub")
    with pytest.raises(ConfigError, match="password"):
        sign(policy(), tmp_path / "k.pem")
    with pytest.raises(CheckpointError, match="private key"):
        sign(policy(), tmp_path / "k.pem", password=b"donkey")
    keygen(tmp_path / "open.pem", tmp_path / "open.pub")
    with pytest.raises(ConfigError, match="password"):
        sign(policy(), tmp_path / "open.pem", password=b"horse")


def test_edited_swapped_and_forged(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    manifest, other = policy("a.weight"), policy()
    good, swapped = sign(manifest, private), sign(other, private)
    with pytest.raises(CheckpointError, match="edited or swapped"):  # a manifest that freezes nothing
        verify(other, good, public)
    with pytest.raises(CheckpointError, match="edited or swapped"):
        verify(replace(manifest, created="2027"), good, public)
    with pytest.raises(CheckpointError, match="edited or swapped"):
        verify(manifest, swapped, public)
    with pytest.raises(CheckpointError, match="forged"):  # says the right digest and key
        verify(manifest, replace(swapped, manifest=manifest.digest()), public)
    with pytest.raises(CheckpointError, match="forged"):
        verify(manifest, replace(good, signature="zz"), public)
    keygen(tmp_path / "evil.pem", tmp_path / "evil.pub")
    evil = sign(manifest, tmp_path / "evil.pem")
    with pytest.raises(CheckpointError, match="not made with this key"):
        verify(manifest, evil, public)
    with pytest.raises(CheckpointError, match="forged"):
        verify(manifest, replace(evil, key=good.key), public)
    with pytest.raises(CheckpointError, match="algorithm"):
        verify(manifest, replace(good, algorithm="none"), public)


@given(st.integers(0, 511))
def test_every_bit_of_the_signature_counts(bit: int) -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    good = sign(policy(), key)
    data = bytearray.fromhex(good.signature)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CheckpointError, match="forged"):
        verify(policy(), replace(good, signature=data.hex()), key.public_key())


@pytest.mark.parametrize(
    "change",
    [{"signature": 5}, {"more": "x"}, {"version": 2}, {"version": True}, {"format": "other"}, {"key": None}],
    ids=str,
)
def test_a_damaged_signature_file(keys: tuple[Path, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    path = sign(policy(), keys[0]).save(tmp_path / "s.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=r"s\.json.*(must be|unknown key|newer version|not a file of)"):
        Signature.load(path)


@given(st.binary(max_size=200))
def test_no_key_file_makes_it_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("k") / "k"
    path.write_bytes(data)
    for read in (load_public, load_private, Signature.load):
        with pytest.raises(UnteachError):
            read(path)


def test_other_keys_are_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    key = rsa.generate_private_key(65537, 2048)
    forms = serialization
    (tmp_path / "rsa.pem").write_bytes(
        key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    )
    (tmp_path / "rsa.pub").write_bytes(
        key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(CheckpointError, match="not an Ed25519"):
        load_private(tmp_path / "rsa.pem")
    with pytest.raises(CheckpointError, match="not an Ed25519"):
        load_public(tmp_path / "rsa.pub")
    with pytest.raises(CheckpointError, match="public key"):
        load_public(keys[0])
    with pytest.raises(CheckpointError, match=r"not a regular file|cannot read"):
        load_public(tmp_path)


def test_without_cryptography_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"unteach\[sign\]"):
        keygen(tmp_path / "a", tmp_path / "b")
    with pytest.raises(MissingExtraError, match=r"unteach\[sign\]"):
        sign(policy(), tmp_path / "a")


@pytest.mark.parametrize("mode", [0o666, 0o644, 0o640, 0o604, 0o620])
def test_l11_a_key_that_others_can_read_or_change_is_refused_unless_it_is_encrypted(tmp_path: Path, mode: int) -> None:
    keygen(tmp_path / "open.pem", tmp_path / "open.pub")
    keygen(tmp_path / "locked.pem", tmp_path / "locked.pub", password=b"a phrase")
    assert not is_encrypted(tmp_path / "open.pem") and is_encrypted(tmp_path / "locked.pem")
    for name in ("open.pem", "locked.pem"):
        (tmp_path / name).chmod(mode)
    with pytest.raises(ConfigError, match=rf"by others than its owner; found: mode {mode:04o}; to do: chmod 600"):
        load_private(tmp_path / "open.pem")
    load_private(tmp_path / "locked.pem", password=b"a phrase")
    (tmp_path / "open.pem").chmod(0o400)
    load_private(tmp_path / "open.pem")
