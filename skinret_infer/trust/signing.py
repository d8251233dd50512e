"""Sign a bundle and verify who signed it: Ed25519 over manifest.json, which holds the hash of every file.

The signature lies beside the manifest and names its key by the SHA-256 of the key's 32 public bytes. What is
signed begins with a word of this package, so that a signature made for anything else is none of a bundle.
`cryptography` comes with the extra `sign` and is imported only where a key is in use.
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
KEY = "SKINRET_BUNDLE_KEY"  # names the file of the keys that are trusted
_CONTEXT = b"skinret-bundle-v1\0"
_FORM = "skinret-bundle-signature 1\nalgorithm: ed25519\nkey: {}\nsignature: {}\n"
# 85 characters and one of four: a signature has one base64, so that no byte of the file can be another.
_SIGNED = re.compile(_FORM.format("([0-9a-f]{64})", "([A-Za-z0-9+/]{85}[AQgw]==)").encode())
_BEGIN = b"-----BEGIN "
_LIMIT = 1 << 16  # no file of keys and no signature is longer


def _needs_cryptography(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ImportError as error:
            wrong = "keys and signatures of bundles cannot be read here"
            raise missing_extra(wrong, error, "sign") from None

    return wrapped


def trusted_keys(path: str | Path | None = None) -> Keys | None:
    """Read the keys of which one must have signed a bundle; None if no signature is required.

    path : a PEM file of one or more Ed25519 public keys; None takes the file that SKINRET_BUNDLE_KEY names.

    Raises InputError, and RuntimeUnavailable where a key is configured and `cryptography` is not installed.
    """
    if path is not None:
        return _public_keys(path)
    if KEY not in os.environ:
        return None
    try:
        return _public_keys(os.environ[KEY])
    except InputError as error:
        error.add_note(f"{KEY} names it; where that is not set, unsigned bundles are loaded too.")
        raise


def key_id(key: "Ed25519PublicKey") -> str:
    """Return the SHA-256 of a public key's 32 bytes, in hex."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def verify(folder: Path, manifest: bytes, keys: Keys) -> None:
    """Check that one of the keys has signed the bytes of a bundle's manifest. Raises BundleError."""
    from cryptography.exceptions import InvalidSignature

    trusted = f"a signature by key {' or '.join(keys)}"
    again = "skinret bundle sign, by the one who made the bundle"
    read = _read(folder)
    if read is None:
        raise BundleError(
            f"{folder} is not signed", code="bundle-unsigned", expected=trusted, found="none", cure=again
        )
    signer, signature = read
    if signer not in keys:
        raise BundleError(
            f"{folder} is signed by a key that is not trusted here",
            code="bundle-signer",
            expected=trusted,
            found=f"one by key {signer}",
            cure="have it signed by a trusted key, or trust this one if you know whose it is",
        )
    try:
        keys[signer].verify(signature, _CONTEXT + manifest)
    except InvalidSignature:
        raise BundleError(
            f"{folder / 'manifest.json'} is not what was signed",
            code="bundle-signature",
            expected=f"the manifest that key {signer} signed",
            cure=f"copy the bundle again, whole; if it was changed on purpose, {again}",
        ) from None


def signer(folder: Path) -> str | None:
    """Return the id of the key that a bundle's signature names, unverified; None if there is no signature."""
    read = _read(folder)
    return read and read[0]


@_needs_cryptography
def _public_keys(path: str | Path) -> Keys:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = {}
    for part in _key_file(path).split(_BEGIN)[1:]:
        try:
            key = load_pem_public_key(_BEGIN + part)
        except (ValueError, UnsupportedAlgorithm):
            kind = part.partition(b"-")[0].decode("ascii", "replace")
            found = "a damaged one" if kind == "PUBLIC KEY" else f"a PEM of {kind[:40]!r}"
            raise _bad_key(path, "public", found) from None
        if not isinstance(key, Ed25519PublicKey):
            raise _bad_key(path, "public", type(key).__name__)
        keys[key_id(key)] = key
    if not keys:
        raise _bad_key(path, "public", "no PEM")
    return keys


@_needs_cryptography
def private_key(path: str | Path, passphrase: Callable[[], str]) -> "Ed25519PrivateKey":
    """Read an Ed25519 private key from PEM, asking for the passphrase if it has one. Raises InputError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _key_file(path)
    protected = _BEGIN + b"ENCRYPTED " in content
    try:
        key = load_pem_private_key(content, passphrase().encode() if protected else None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        found = "another passphrase, or a damaged file" if protected else "none that can be read"
        raise _bad_key(path, "private", found) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_key(path, "private", type(key).__name__)
    return key


def sign(folder: Path, key: "Ed25519PrivateKey") -> str:
    """Sign a bundle's manifest as it lies there, in place of an older signature; return the key's id."""
    name = key_id(key.public_key())
    try:
        signature = key.sign(_CONTEXT + (folder / "manifest.json").read_bytes())
        with atomic_write(folder / SIGNATURE) as temporary:
            temporary.write_bytes(_FORM.format(name, base64.b64encode(signature).decode()).encode())
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be signed",
            code="bundle-write",
            expected="a folder that can be written",
            found=str(error),
        ) from None
    return name


@_needs_cryptography
def make_keys(private: Path, public: Path, passphrase: str | None = None) -> str:
    """Write a new pair of keys as PEM, the private one readable by its owner alone; return the id.

    Raises InputError if either file is there.
    """
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    lock = pem.BestAvailableEncryption(passphrase.encode()) if passphrase else pem.NoEncryption()
    secret = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, lock)
    shown = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    written = []
    try:
        for path, mode, content in ((private, 0o600, secret), (public, 0o644, shown)):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
                written.append(path)
                file.write(content)
                os.fsync(file.fileno())
    except OSError as error:
        for path in written:
            path.unlink()
        raise InputError(
            "the keys cannot be written",
            code="key-write",
            expected="two files that are not there yet",
            found=str(error),
            cure="name others; a key is never overwritten",
        ) from None
    return key_id(key.public_key())


def _read(folder: Path) -> tuple[str, bytes] | None:
    """Return the key's id and the signature that lie beside a manifest; None if no file is there."""
    path = folder / SIGNATURE
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        content, found = b"", str(error)
    else:
        found = f"{content[:40]!r}"
    parts = _SIGNED.fullmatch(content)
    if parts is None:
        raise BundleError(
            f"{path} is not the signature of a bundle",
            code="bundle-signature",
            expected="four lines, as `skinret bundle sign` writes them",
            found=found,
            cure="copy the bundle again, whole",
        )
    return parts[1].decode(), base64.b64decode(parts[2])


def _key_file(path: str | Path) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_LIMIT)
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
