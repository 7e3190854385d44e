"""Sign a freeze manifest and check the signature: Ed25519 (RFC 8032) through the package ``cryptography``.

A signature says who made a manifest and that it was not edited. It does not keep anyone from training.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unteach.errors import CheckpointError, ConfigError, MissingExtraError
from unteach.guard.manifest import FreezeManifest
from unteach.guard.verify.reader import regular
from unteach.records.base import Record

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["Signature", "is_encrypted", "key_id", "keygen", "load_private", "load_public", "sign", "verify"]

ALGORITHM = "ed25519"
_PURPOSE = b"unteach freeze manifest, version 1\n"  # a key used for other things too signs nothing else by accident
_KEY_LIMIT = 1 << 16


@dataclass(frozen=True)
class Signature(Record):
    """A detached signature.

    Attributes:
        algorithm: "ed25519".
        key: id of the public key: SHA-256 (hex) of its 32 bytes.
        manifest: digest of the manifest that was signed; says at once when another one is meant.
        signature: 64 bytes, hex.
    """

    FORMAT, LIMIT = "unteach-signature", _KEY_LIMIT

    algorithm: str
    key: str
    manifest: str
    signature: str


def keygen(private: Path | str, public: Path | str, *, password: bytes | None = None) -> str:
    """Make a key pair. The private key is PKCS8 in PEM, readable by its owner only; nothing is ever overwritten.

    Args:
        private, public: files to make.
        password: encrypts the private key.

    Returns:
        The key's id.

    Raises:
        ConfigError: a file exists already, or the password is empty.
        CheckpointError: a file cannot be written.
        MissingExtraError: ``cryptography`` is not installed.
    """
    ed25519, forms = _crypto()
    private, public = Path(private), Path(public)
    if password == b"":
        raise ConfigError("the password is empty", fix="give one, or None for a key that is not encrypted")
    if private.absolute() == public.absolute():
        raise ConfigError("the two keys need two files", found=private)
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path} exists; a key is never overwritten", fix="choose another name")
    key = ed25519.Ed25519PrivateKey.generate()
    how = forms.BestAvailableEncryption(password) if password else forms.NoEncryption()
    secret = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, how)
    _write_new(private, secret, 0o600)
    try:
        _write_new(public, _pem(key.public_key()), 0o644)
    except BaseException:
        private.unlink(missing_ok=True)
        raise
    return key_id(key.public_key())


def sign(
    manifest: FreezeManifest, key: "Ed25519PrivateKey | Path | str", *, password: bytes | None = None
) -> Signature:
    """Sign a manifest's canonical bytes.

    Args:
        manifest: what to sign.
        key: a private key or its PEM file.
        password: the file's password.

    Raises:
        CheckpointError: the key cannot be read; ConfigError: the password is wrong or missing; MissingExtraError.
    """
    private = load_private(key, password=password) if isinstance(key, str | Path) else key
    signature = private.sign(_PURPOSE + manifest.canonical())
    return Signature(ALGORITHM, key_id(private.public_key()), manifest.digest(), signature.hex())


def verify(
    manifest: FreezeManifest, signature: Signature | Path | str, public_key: "Ed25519PublicKey | Path | str"
) -> str:
    """Check that the owner of the key signed exactly this manifest.

    Returns:
        The key's id.

    Raises:
        CheckpointError: another algorithm, another key, another manifest, or a forged signature; says which.
        MissingExtraError: ``cryptography`` is not installed.
    """
    from_file = isinstance(signature, str | Path)
    given = Signature.load(signature) if isinstance(signature, str | Path) else signature
    public = load_public(public_key) if isinstance(public_key, str | Path) else public_key
    what = f"the signature {signature}" if from_file else "the signature"
    if given.algorithm != ALGORITHM:
        raise CheckpointError(
            f"{what} is of another algorithm", found=f"{given.algorithm!r:.40}", fix=f"use {ALGORITHM}"
        )
    if given.key != key_id(public):
        raise CheckpointError(
            f"{what} was not made with this key",
            found=f"key {given.key[:12]!r}, expected '{key_id(public)[:12]}'",
            fix="get the publisher's public key from where you trust it, not from beside the signature",
        )
    if given.manifest != manifest.digest():
        raise CheckpointError(
            f"{what} is for another manifest: this one was edited or swapped",
            found=f"digest {manifest.digest()[:12]}, signed was {given.manifest[:12]!r}",
            fix="get the manifest and its signature again from the publisher",
        )
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(bytes.fromhex(given.signature), _PURPOSE + manifest.canonical())
    except (InvalidSignature, ValueError) as error:
        raise CheckpointError(
            f"{what} is forged: it is not this key's signature of this manifest",
            fix="do not use the manifest; get it and its signature again from the publisher",
        ) from error
    return given.key


def key_id(public: "Ed25519PublicKey") -> str:
    """SHA-256 (hex) of the public key's 32 bytes."""
    _, forms = _crypto()
    return hashlib.sha256(public.public_bytes(forms.Encoding.Raw, forms.PublicFormat.Raw)).hexdigest()


def load_private(path: Path | str, *, password: bytes | None = None) -> "Ed25519PrivateKey":
    """An Ed25519 private key from a PEM file; errors as in :func:`sign`.

    Raises:
        ConfigError: others than its owner may read or write a key that is not encrypted.
    """
    ed25519, forms = _crypto()
    data = _read(Path(path))
    try:
        key: Any = forms.load_pem_private_key(data, password)
    except TypeError as error:  # cryptography's way to say that a password is missing, or is not needed
        raise ConfigError(f"the private key {path} needs another password", found=error) from error
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a private key", found=str(error)[:120]) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise CheckpointError(f"{path} is not an Ed25519 key", found=type(key).__name__, fix="make one with 'keygen'")
    mode = os.stat(path).st_mode & 0o777
    if os.name == "posix" and mode & 0o077 and not is_encrypted(path):
        raise ConfigError(
            f"the private key {path} can be read or changed by others than its owner",
            found=f"mode {mode:04o}",
            fix=f"chmod 600 {path} (and make a new key if somebody may have read it)",
        )
    private: Ed25519PrivateKey = key
    return private


def is_encrypted(path: Path | str) -> bool:
    """Whether a private key needs a pass phrase; CheckpointError when the file cannot be read."""
    return b"ENCRYPTED" in _read(Path(path))


def load_public(path: Path | str) -> "Ed25519PublicKey":
    """An Ed25519 public key from a PEM file.

    Raises:
        CheckpointError: it is missing or something else; MissingExtraError.
    """
    ed25519, forms = _crypto()
    data = _read(Path(path))
    try:
        key: Any = forms.load_pem_public_key(data)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a public key", found=str(error)[:120], fix="give the publisher's PEM file"
        ) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise CheckpointError(f"{path} is not an Ed25519 key", found=type(key).__name__)
    public: Ed25519PublicKey = key
    return public


def _crypto() -> tuple[Any, Any]:
    """The modules with the keys and with their formats."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtraError("cryptography", "sign") from error
    return ed25519, serialization


def _pem(public: "Ed25519PublicKey") -> bytes:
    _, forms = _crypto()
    pem: Callable[..., bytes] = public.public_bytes
    return pem(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path) -> bytes:
    with os.fdopen(regular(path, str(path)), "rb") as file:
        data = file.read(_KEY_LIMIT + 1)
    if len(data) > _KEY_LIMIT:
        raise CheckpointError(f"{path} is too long for a key")
    return data


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists; a key is never overwritten", fix="choose another name") from error
    except OSError as error:
        raise CheckpointError(f"cannot write {path}", found=error.strerror or error) from error
    with os.fdopen(file, "wb") as out:
        os.fchmod(file, mode)
        out.write(data)
