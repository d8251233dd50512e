"""A signed bundle is loaded where its key is trusted; any other is refused before anything of it is read."""

import base64
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ed448, rsa, x25519

from skinret_infer import BundleError, Case, Searcher, SkinretError
from skinret_infer._files import atomic_folder
from skinret_infer.bundle import Bundle
from skinret_infer.cli.bundle import PASSPHRASE
from skinret_infer.cli.main import main
from skinret_infer.trust import signing

ROOT = Path(__file__).parents[2]
OPENSSL = shutil.which("openssl")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two pairs of keys: a.pem and a.pub, b.pem and b.pub; both.pub holds both public ones."""
    folder = tmp_path_factory.mktemp("keys")
    for name in "ab":
        signing.make_keys(folder / f"{name}.pem", folder / f"{name}.pub")
    both = b"# trusted\n" + b"\n".join((folder / f"{name}.pub").read_bytes() for name in "ab")
    (folder / "both.pub").write_bytes(both)
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that is not signed."""
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.fixture
def signed(copy: Path, keys: Path) -> Path:
    """A bundle that key a has signed."""
    _sign(copy, keys / "a.pem")
    return copy


def _sign(bundle: Path, key: Path, passphrase: str = "") -> str:
    return signing.sign(bundle, signing.private_key(key, lambda: passphrase))


def _trusted(path: Path) -> signing.Keys:
    found = signing.trusted_keys(path)
    assert found is not None
    return found


def _refusal(bundle: Path, key: Path | None, code: str) -> str:
    with pytest.raises(SkinretError) as caught:
        Bundle.load(bundle, key)
    assert caught.value.code == code, caught.value
    return str(caught.value)


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], **options)


# -- bundles that load --


def test_a_signed_bundle_loads_where_its_key_is_trusted(signed: Path, keys: Path) -> None:
    loaded = Bundle.load(signed, keys / "a.pub")
    assert loaded == Bundle.load(signed, str(keys / "both.pub")) == Bundle.load(signed)
    (name,) = _trusted(keys / "a.pub")
    assert signing.signer(signed) == name
    text = (signed / signing.SIGNATURE).read_text("ascii")
    assert f"key: {name}\n" in text and len(text) < 300


def test_without_a_key_signed_and_unsigned_bundles_load(bundle: Path, signed: Path) -> None:
    assert Bundle.load(bundle).manifest == Bundle.load(signed).manifest
    (signed / signing.SIGNATURE).write_bytes(b"nonsense")
    assert Bundle.load(bundle).manifest == Bundle.load(signed).manifest


def test_the_environment_names_the_key_for_all_who_load(
    bundle: Path, signed: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(signing.KEY, str(keys / "b.pub"))
    with pytest.raises(BundleError, match="not trusted"):
        Searcher(signed, tmp_path / "cases.skinret")
    assert Bundle.load(signed, keys / "a.pub")  # an argument goes before the environment
    monkeypatch.setenv(signing.KEY, str(keys / "a.pub"))
    Searcher(signed, tmp_path / "cases.skinret").close()
    with pytest.raises(BundleError, match="not signed"):
        Searcher(bundle, tmp_path / "cases.skinret")


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "{bundle}", "{archive}", "--image", "{image}"],
        ["index", "{bundle}", "new.skinret", "{data}"],
        ["evaluate", "{bundle}", "{archive}", "{data}"],
        ["validate-precision", "{bundle}", "{data}", "--runtime", "openvino", "--precision", "bf16"],
        ["doctor", "{bundle}"],
        ["engines", "build", "{bundle}", "--runtime", "tensorrt"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_loads_a_bundle_asks_for_the_signature(
    arguments: list[str],
    bundle: Path,
    archive: Path,
    data: Path,
    cases: list[Case],
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(signing.KEY, str(keys / "a.pub"))
    monkeypatch.chdir(tmp_path)
    names = {"bundle": bundle, "archive": archive, "data": data, "image": cases[0].image}
    given = [argument.format(**names) for argument in arguments]
    result = run(*given)
    assert result.exit_code == (4 if given[0] == "doctor" else 1)
    assert "[bundle-unsigned]" in result.output
    assert not list(tmp_path.iterdir())


# -- bundles that are refused --


def test_an_unsigned_bundle_is_refused_with_the_key_that_is_wanted(copy: Path, keys: Path) -> None:
    said = _refusal(copy, keys / "a.pub", "bundle-unsigned")
    assert next(iter(_trusted(keys / "a.pub"))) in said and "skinret bundle sign" in said


def test_a_bundle_signed_by_another_key_is_refused_with_both_ids(signed: Path, keys: Path) -> None:
    said = _refusal(signed, keys / "b.pub", "bundle-signer")
    assert all(name in said for name in _trusted(keys / "both.pub"))


def test_the_id_of_a_trusted_key_over_a_signature_by_another_does_not_help(signed: Path, keys: Path) -> None:
    a, b = _trusted(keys / "both.pub")
    file = signed / signing.SIGNATURE
    file.write_text(file.read_text("ascii").replace(a, b), "ascii")
    _refusal(signed, keys / "b.pub", "bundle-signature")


def test_no_bit_of_a_manifest_or_a_signature_can_be_another(signed: Path, keys: Path) -> None:
    trusted = _trusted(keys / "both.pub")
    manifest, file = (signed / "manifest.json").read_bytes(), signed / signing.SIGNATURE
    signature = file.read_bytes()
    signing.verify(signed, manifest, trusted)
    for place in range(len(manifest)):
        changed = bytearray(manifest)
        changed[place] ^= 1 << place % 8
        with pytest.raises(BundleError):
            signing.verify(signed, bytes(changed), trusted)
    for place in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(BundleError):
            signing.verify(signed, manifest, trusted)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: text[:-1],
        lambda text: text + b"\n",
        lambda text: b"\n" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"1\n", b"2\n", 1),
        lambda text: text.replace(b"ed25519", b"none"),
        lambda text: text.upper(),
        lambda text: text * 1000,
        lambda text: bytes(100_000),
        lambda text: b'{"key": "", "signature": ""}',
        # the same 64 bytes in another base64: the bits that are left over in the last character
        lambda text: re.sub(rb"[AQgw]==", lambda m: bytes([m[0][0] + 1]) + b"==", text),
    ],
)
def test_a_signature_that_is_not_written_as_it_was_is_refused(change: Any, signed: Path, keys: Path) -> None:
    file = signed / signing.SIGNATURE
    file.write_bytes(change(file.read_bytes()))
    assert str(file) in _refusal(signed, keys / "a.pub", "bundle-signature")


def test_a_folder_in_the_place_of_the_signature_is_refused(signed: Path, keys: Path) -> None:
    (signed / signing.SIGNATURE).unlink()
    (signed / signing.SIGNATURE).mkdir()
    _refusal(signed, keys / "a.pub", "bundle-signature")


def test_a_signature_of_the_bare_manifest_is_none_of_a_bundle(signed: Path, keys: Path) -> None:
    manifest = (signed / "manifest.json").read_bytes()
    bare = signing.private_key(keys / "a.pem", str).sign(manifest)
    file = signed / signing.SIGNATURE
    text = re.sub(rb"signature: .*", b"signature: " + base64.b64encode(bare), file.read_bytes())
    file.write_bytes(text)
    _refusal(signed, keys / "a.pub", "bundle-signature")


def test_nothing_of_a_manifest_is_parsed_before_it_is_verified(signed: Path, keys: Path) -> None:
    (signed / "manifest.json").write_bytes(b"[" * 100_000)
    _refusal(signed, keys / "a.pub", "bundle-signature")
    _refusal(signed, None, "bundle-manifest")


def test_the_bytes_that_were_verified_are_those_that_are_parsed(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, verify = Bundle.load(signed).manifest, signing.verify

    def verify_and_swap(folder: Path, content: bytes, trusted: signing.Keys) -> None:
        verify(folder, content, trusted)
        (folder / "manifest.json").write_bytes(b"nonsense")

    monkeypatch.setattr(signing, "verify", verify_and_swap)
    assert Bundle.load(signed, keys / "a.pub").manifest == manifest


def test_a_changed_file_of_a_signed_bundle_is_found_by_its_hash(signed: Path, keys: Path) -> None:
    with (signed / "composer.onnx").open("r+b") as file:
        file.write(b"\xff")
    assert "composer.onnx" in _refusal(signed, keys / "a.pub", "bundle-hash")
    assert run("bundle", "sign", signed, "--key", keys / "b.pem").exit_code == 1  # nor is it signed anew
    assert signing.signer(signed) in _trusted(keys / "a.pub")


def test_a_manifest_written_anew_needs_a_new_signature(signed: Path, keys: Path) -> None:
    path = signed / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"version": "2"}), "utf-8")
    said = _refusal(signed, keys / "a.pub", "bundle-signature")
    assert "changed on purpose" in said and "skinret bundle sign" in said
    _sign(signed, keys / "a.pem")
    assert Bundle.load(signed, keys / "a.pub").manifest.version == "2"


def test_a_bundle_written_over_a_signed_one_has_no_signature(bundle: Path, signed: Path, keys: Path) -> None:
    with atomic_folder(signed) as folder:  # as skinret-export writes
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
    _refusal(signed, keys / "a.pub", "bundle-unsigned")


# -- keys --


def _pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    return public


def _private_pem(key: Any) -> bytes:
    secret: bytes = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    return secret


OTHERS = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "x25519": x25519.X25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_keys_of_another_algorithm_are_refused(kind: str, signed: Path, tmp_path: Path) -> None:
    key = OTHERS[kind]()
    (tmp_path / "pub").write_bytes(_pem(key))
    (tmp_path / "pem").write_bytes(_private_pem(key))
    said = _refusal(signed, tmp_path / "pub", "key")
    assert "Ed25519" in said and kind.upper() in said.upper()
    with pytest.raises(SkinretError, match="Ed25519 private key") as caught:
        _sign(signed, tmp_path / "pem")
    assert caught.value.code == "key"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: b"\xff" * 1000,
        lambda text: text[:40],
        lambda text: text[:-10],
        lambda text: text.replace(b"M", b"!", 1),
        lambda text: text.replace(b"PUBLIC", b"CERTIFICATE"),
        lambda text: text[:60] + b"\n" + text,
        lambda text: text + text[:40],
        lambda text: b"x" * 100_000 + text,
    ],
)
def test_a_damaged_public_key_is_refused_and_not_passed_over(
    change: Any, signed: Path, keys: Path, tmp_path: Path
) -> None:
    (tmp_path / "pub").write_bytes(change((keys / "a.pub").read_bytes()))
    assert str(tmp_path / "pub") in _refusal(signed, tmp_path / "pub", "key")


def test_a_private_key_does_not_verify_and_a_public_one_does_not_sign(signed: Path, keys: Path) -> None:
    said = _refusal(signed, keys / "a.pem", "key")
    assert "PRIVATE KEY" in said and (keys / "a.pem").read_text("ascii").splitlines()[1] not in said
    with pytest.raises(SkinretError, match="private key"):
        _sign(signed, keys / "a.pub")


@pytest.mark.parametrize("name", ["none.pub", "", ".", "nul\0.pub", "x" * 5000])
def test_a_key_that_cannot_be_read_is_no_bypass(
    name: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SkinretError) as caught:
        Bundle.load(bundle, name)
    assert caught.value.code == "key"


@pytest.mark.parametrize("value", ["", " ", "none.pub"])
def test_a_variable_that_names_no_key_is_no_bypass(
    value: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(signing.KEY, value)
    with pytest.raises(SkinretError) as caught:
        Bundle.load(bundle)
    assert caught.value.code == "key" and signing.KEY in str(caught.value.__notes__)


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    private, public = tmp_path / "pem", tmp_path / "pub"
    name = signing.make_keys(private, public)
    assert list(_trusted(public)) == [name]
    if os.name != "nt":
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    for pair in (
        (private, tmp_path / "new"),
        (tmp_path / "new", public),
        (tmp_path / "one", tmp_path / "one"),
    ):
        with pytest.raises(SkinretError, match="never overwritten"):
            signing.make_keys(*pair)
    assert (private.read_bytes(), public.read_bytes()) == before
    assert {path.name for path in tmp_path.iterdir()} == {"pem", "pub"}


def test_without_cryptography_a_key_that_is_configured_is_an_error_with_its_cure(
    bundle: Path, keys: Path
) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from skinret_infer import SkinretError\n"
        "from skinret_infer.bundle import Bundle\n"
        "Bundle.load(sys.argv[1])\n"
        "try:\n    Bundle.load(sys.argv[1], sys.argv[2])\n"
        "except SkinretError as error:\n    print(error.code, error.exit_code, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bundle, keys / "a.pub"], capture_output=True, text=True
    )
    assert done.stdout.startswith("extra-missing 4 "), done
    assert 'pip install "skinret-infer[sign]"' in done.stdout


def test_without_a_key_cryptography_is_not_imported(bundle: Path) -> None:
    code = (
        "import sys; from skinret_infer.bundle import Bundle; Bundle.load(sys.argv[1]); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=True)
    assert "skinret_infer.trust.signing" in done.stdout and "cryptography" not in done.stdout


# -- beside openssl --


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
def test_keys_of_openssl_sign_and_verify(copy: Path, tmp_path: Path) -> None:
    private, public, locked = tmp_path / "pem", tmp_path / "pub", tmp_path / "locked"
    _openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    _openssl("pkey", "-in", private, "-pubout", "-out", public)
    _openssl("pkey", "-in", private, "-aes256", "-passout", "pass:word", "-out", locked)
    _sign(copy, private)
    once = (copy / signing.SIGNATURE).read_bytes()
    assert Bundle.load(copy, public)
    _sign(copy, locked, "word")
    assert (copy / signing.SIGNATURE).read_bytes() == once  # Ed25519 has no chance in it


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
def test_openssl_verifies_what_was_signed_here(signed: Path, keys: Path, tmp_path: Path) -> None:
    lines = (signed / signing.SIGNATURE).read_text("ascii").splitlines()
    (tmp_path / "sig").write_bytes(base64.b64decode(lines[3].removeprefix("signature: ")))
    (tmp_path / "message").write_bytes(b"skinret-bundle-v1\0" + (signed / "manifest.json").read_bytes())
    _openssl(
        *("pkeyutl", "-verify", "-rawin", "-in", tmp_path / "message", "-sigfile", tmp_path / "sig"),
        *("-pubin", "-inkey", keys / "a.pub"),
    )
    _openssl("pkey", "-pubin", "-in", keys / "a.pub", "-outform", "DER", "-out", tmp_path / "der")
    raw = (tmp_path / "der").read_bytes()[-32:]
    assert lines[2] == f"key: {hashlib.sha256(raw).hexdigest()}"


def _openssl(*arguments: object) -> None:
    subprocess.run([str(OPENSSL), *map(str, arguments)], check=True, capture_output=True)


# -- the commands --


def test_the_commands_make_keys_sign_and_verify(copy: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "pem", tmp_path / "pub"
    assert run("bundle", "keygen", private, public).exit_code == 0
    assert run("bundle", "keygen", private, public).exit_code == 1
    assert run("bundle", "verify", copy, "--key", public).exit_code == 1
    done = run("bundle", "sign", copy, "--key", private)
    (name,) = _trusted(public)
    assert done.exit_code == 0 and not done.stdout and name in done.stderr
    done = run("bundle", "verify", copy, "--key", public, "--json")
    assert done.exit_code == 0 and "whole" in done.stderr
    assert json.loads(done.stdout) == {"bundle": str(copy), "model": "tiny", "version": "1", "key": name}
    assert run("bundle", "verify", copy, env={signing.KEY: str(public)}).exit_code == 0
    done = run("bundle", "verify", copy)
    assert done.exit_code == 1 and "--key" in done.stderr  # a verification without a key is none
    assert run("bundle", "sign", copy).exit_code == 2
    assert run("bundle", "sign", tmp_path / "none", "--key", private).exit_code == 1


def test_a_passphrase_is_typed_in_or_taken_from_the_environment(copy: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "pem", tmp_path / "pub"
    made = run("bundle", "keygen", private, public, "--passphrase", input="word\nword\n")
    assert made.exit_code == 0 and "word" not in made.output
    assert b"ENCRYPTED" in private.read_bytes()
    sign = ("bundle", "sign", copy, "--key", private)
    for options in ({"env": {PASSPHRASE: "other"}}, {"input": "other\n"}):
        done = run(*sign, **options)
        assert done.exit_code == 1 and "another passphrase" in done.stderr and "other\n" not in done.output
        assert not (copy / signing.SIGNATURE).exists()
    assert run(*sign, input="word\n").exit_code == 0
    assert run(*sign, env={PASSPHRASE: "word"}).exit_code == 0
    assert Bundle.load(copy, public)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_bundle_that_cannot_be_written_says_so(copy: Path, keys: Path) -> None:
    copy.chmod(0o500)
    done = run("bundle", "sign", copy, "--key", keys / "a.pem")
    copy.chmod(0o700)
    assert done.exit_code == 1 and "[bundle-write]" in done.stderr


def test_doctor_says_who_signed_a_bundle(signed: Path, keys: Path) -> None:
    (name,) = _trusted(keys / "a.pub")

    def said(**env: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(run("doctor", signed, "--json", env=env).stdout)["bundle"]
        return report.get("signature", report)  # type: ignore[no-any-return]

    assert said() == {"key": name, "verified": False, "fault": ""}
    assert f"by key {name}, not verified" in run("doctor", signed).stdout
    assert said(**{signing.KEY: str(keys / "a.pub")}) == {"key": name, "verified": True, "fault": ""}
    assert said(**{signing.KEY: str(keys / "b.pub")})["code"] == "bundle-signer"
    (signed / signing.SIGNATURE).write_bytes(b"nonsense")
    assert "nonsense" in said()["fault"]
    (signed / signing.SIGNATURE).unlink()
    assert said() == {"key": None, "verified": False, "fault": ""}


def test_a_command_takes_the_trusted_keys_as_an_option(
    signed: Path, keys: Path, archive: Path, data: Path, tmp_path: Path
) -> None:
    """Each that loads a bundle; without it, or with another's key, the default rules."""
    signing.make_keys(tmp_path / "other.pem", tmp_path / "others.pem")
    for line in (
        f"query {signed} {archive} --image {next((data / 'images').iterdir())}",
        f"doctor {signed}",
        f"index {signed} {tmp_path / 'new.skinret'} {data}",
        f"evaluate {signed} {archive} {data}",
        f"validate-precision {signed} {data} --runtime openvino --precision bf16",
    ):
        refused = run(*line.split(), "--key", tmp_path / "others.pem")
        assert refused.exit_code in (1, 4) and "signed" in refused.output, line
    assert run("doctor", signed, "--key", keys / "a.pub").exit_code == 0
