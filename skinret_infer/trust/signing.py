"""Sign a bundle and verify who signed it: Ed25519 over manifest.json, which holds the hash of every file.

The signature lies beside the manifest and names its key by the SHA-256 of the key's 32 public bytes. The
signed message starts with a fixed context string, so that a signature made for another purpose is not
accepted. `cryptography` comes with the extra `sign` and is imported only if a key is in use.
"""

import base64
import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from .._extras import missing_extra
from .._files import atomic_write
from ..errors import BundleError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Keys = Mapping[str, "Ed25519PublicKey"]  # by their ids
P = ParamSpec("P")
R = TypeVar("R")
SIGNATURE = "manifest.json.sig"
KEY = "SKINRET_BUNDLE_KEY"  # names the file of the trusted keys
_CONTEXT = b"skinret-bundle-v1\0"
_FORM = "skinret-bundle-signature 1\nalgorithm: ed25519\nkey: {}\nsignature: {}\n"
# 85 characters and one of four: a signature has only one valid base64, so every changed byte is refused.
_SIGNATURE_FILE = re.compile(_FORM.format("([0-9a-f]{64})", "([A-Za-z0-9+/]{85}[AQgw]==)").encode())
_BEGIN = b"-----BEGIN "
_MAX_BYTES = 1 << 16  # of a file of keys or a signature


def _needs_cryptography(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ImportError as error:
            message = "keys and signatures of bundles cannot be read here"
            raise missing_extra(message, error, "sign") from None

    return wrapped


def trusted_keys(path: str | Path | None = None) -> Keys | None:
    """Read the trusted keys; one of them must have signed a bundle. None if no signature is required.

    path : a PEM file of one or more Ed25519 public keys; None: the file that SKINRET_BUNDLE_KEY names.

    Raises InputError, and RuntimeUnavailable if a key is configured and `cryptography` is not installed.
    """
    if path is not None:
        return _public_keys(path)
    if KEY not in os.environ:
        return None
    try:
        return _public_keys(os.environ[KEY])
    except InputError as error:
        error.add_note(
            f"The environment variable {KEY} names this file. If it is not set, unsigned bundles load."
        )
        raise


def key_id(key: "Ed25519PublicKey") -> str:
    """Return the SHA-256 of a public key's 32 bytes, in hex."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def verify(folder: Path, manifest: bytes, keys: Keys) -> None:
    """Check that one of the keys has signed the bytes of a bundle's manifest. Raises BundleError."""
    from cryptography.exceptions import InvalidSignature

    trusted = f"a signature by key {' or '.join(keys)}"
    cure = "the maker of the bundle must sign it with `skinret bundle sign`"
    content = _read(folder)
    if content is None:
        raise BundleError(
            f"{folder} is not signed", code="bundle-unsigned", expected=trusted, found="none", cure=cure
        )
    signer, signature = content
    if signer not in keys:
        raise BundleError(
            f"{folder} is signed by a key that is not trusted here",
            code="bundle-signer",
            expected=trusted,
            found=f"a signature by key {signer}",
            cure="have it signed by a trusted key, or trust this key if you know its owner",
        )
    try:
        keys[signer].verify(signature, _CONTEXT + manifest)
    except InvalidSignature:
        raise BundleError(
            f"{folder / 'manifest.json'} does not match its signature",
            code="bundle-signature",
            expected=f"the manifest that key {signer} signed",
            cure=f"copy the bundle again with all its files; if it was changed on purpose, {cure}",
        ) from None


def signer(folder: Path) -> str | None:
    """Return the id of the key that a bundle's signature names, unverified; None if there is no signature."""
    content = _read(folder)
    return content and content[0]


@_needs_cryptography
def _public_keys(path: str | Path) -> Keys:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = {}
    for block in _read_key_file(path).split(_BEGIN)[1:]:
        try:
            key = load_pem_public_key(_BEGIN + block)
        except (ValueError, UnsupportedAlgorithm):
            kind = block.partition(b"-")[0].decode("ascii", "replace")
            found = "a damaged key" if kind == "PUBLIC KEY" else f"a PEM of {kind[:40]!r}"
            raise _bad_key(path, "public", found) from None
        if not isinstance(key, Ed25519PublicKey):
            raise _bad_key(path, "public", type(key).__name__)
        keys[key_id(key)] = key
    if not keys:
        raise _bad_key(path, "public", "no PEM")
    return keys


@_needs_cryptography
def private_key(path: str | Path, passphrase: Callable[[], str]) -> "Ed25519PrivateKey":
    """Read an Ed25519 private key from PEM; ask for the passphrase if it has one. Raises InputError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read_key_file(path)
    protected = _BEGIN + b"ENCRYPTED " in content
    try:
        key = load_pem_private_key(content, passphrase().encode() if protected else None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        found = "another passphrase, or a damaged file" if protected else "no readable private key"
        raise _bad_key(path, "private", found) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_key(path, "private", type(key).__name__)
    return key


def sign(folder: Path, key: "Ed25519PrivateKey") -> str:
    """Sign a bundle's manifest and return the key's id. The signature replaces an older one."""
    name = key_id(key.public_key())
    try:
        signature = key.sign(_CONTEXT + (folder / "manifest.json").read_bytes())
        with atomic_write(folder / SIGNATURE) as temporary:
            temporary.write_bytes(_FORM.format(name, base64.b64encode(signature).decode()).encode())
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be signed",
            code="bundle-write",
            expected="a writable folder",
            found=str(error),
        ) from None
    return name


@_needs_cryptography
def make_keys(private: Path, public: Path, passphrase: str | None = None) -> str:
    """Write a new pair of keys as PEM, the private key readable only by its owner; return the id.

    Raises InputError if one of the files exists.
    """
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    encryption = pem.BestAvailableEncryption(passphrase.encode()) if passphrase else pem.NoEncryption()
    private_pem = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption)
    public_pem = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    new_files = []
    try:
        for path, mode, content in ((private, 0o600, private_pem), (public, 0o644, public_pem)):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
                new_files.append(path)
                file.write(content)
                os.fsync(file.fileno())
    except OSError as error:
        for path in new_files:
            path.unlink()
        raise InputError(
            "the keys cannot be written",
            code="key-write",
            expected="the names of two files that do not exist yet",
            found=str(error),
            cure="give other names; a key is never overwritten",
        ) from None
    return key_id(key.public_key())


def _read(folder: Path) -> tuple[str, bytes] | None:
    """Return the key's id and the signature of the file beside a manifest; None if there is no such file."""
    path = folder / SIGNATURE
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        content, found = b"", str(error)
    else:
        found = f"{content[:40]!r}"
    match = _SIGNATURE_FILE.fullmatch(content)
    if match is None:
        raise BundleError(
            f"{path} is not the signature of a bundle",
            code="bundle-signature",
            expected="four lines, as `skinret bundle sign` writes them",
            found=found,
            cure="copy the bundle again with all its files",
        )
    return match[1].decode(), base64.b64decode(match[2])


def _read_key_file(path: str | Path) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(
            f"the key {str(path)!r} cannot be read", code="key", expected="a PEM file", found=str(error)
        ) from None


def _bad_key(path: str | Path, kind: str, found: str) -> InputError:
    return InputError(
        f"{path} cannot be used as a key",
        code="key",
        expected=f"an Ed25519 {kind} key in PEM",
        found=found,
        cure="`skinret bundle keygen` makes a pair, and so does openssl genpkey -algorithm ed25519",
    )
