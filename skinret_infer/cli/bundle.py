"""`skinret bundle`: keys, signatures and their verification. Every command needs the extra `sign`."""

import json
import os
from pathlib import Path

import click

from ..bundle import Bundle
from ..errors import InputError
from ..trust import signing
from .common import PATH, json_option, report_errors

PASSPHRASE = "SKINRET_KEY_PASSPHRASE"


@click.group(short_help="Sign a bundle, verify a signature, make keys.")
def bundle() -> None:
    """Sign a bundle and verify who signed it. Needs skinret-infer[sign]."""


@bundle.command(short_help="Make a pair of keys.")
@click.argument("private", type=PATH)
@click.argument("public", type=PATH)
@click.option(
    "--passphrase",
    is_flag=True,
    help=f"Protect PRIVATE with a passphrase: {PASSPHRASE}, or one that you type.",
)
@report_errors
def keygen(private: Path, public: Path, passphrase: bool) -> None:
    """Write a new Ed25519 key to the files PRIVATE and PUBLIC, as openssl does. Neither may exist yet."""
    name = signing.make_keys(private, public, _passphrase(confirm=True) if passphrase else None)
    click.echo(f"{private} signs, {public} verifies; their id is {name}", err=True)


@bundle.command(short_help="Sign a bundle.")
@click.argument("bundle", type=PATH)
@click.option("--key", required=True, type=PATH, help="PEM file of your private key.")
@report_errors
def sign(bundle: Path, key: Path) -> None:
    """Check BUNDLE against its hashes and sign it; the signature is manifest.json.sig in it.

    The passphrase of a protected key is prompted for, or taken from SKINRET_KEY_PASSPHRASE.
    """
    Bundle.unverified(bundle)
    name = signing.sign(bundle, signing.private_key(key, _passphrase))
    click.echo(f"{bundle} is signed by key {name}", err=True)


@bundle.command(short_help="Verify that a bundle is whole, and who signed it.")
@click.argument("bundle", type=PATH)
@click.option(
    "--key", type=PATH, help=f"PEM file of the public keys that are trusted.  [default: {signing.KEY}]"
)
@json_option
@report_errors
def verify(bundle: Path, key: Path | None, as_json: bool) -> None:
    """Check BUNDLE as a search does: one of the keys has signed it, and every file has its hash."""
    if key is None and signing.KEY not in os.environ:
        raise InputError(
            "there is no key to verify with",
            code="key",
            expected=f"--key, or {signing.KEY} in the environment",
        )
    manifest = Bundle.load(bundle, key).manifest
    report = {
        "bundle": str(bundle),
        "model": manifest.model,
        "version": manifest.version,
        "key": signing.signer(bundle),
    }
    if as_json:
        click.echo(json.dumps(report))
    click.echo(f"{bundle} is whole, and signed by key {report['key']}", err=True)


def _passphrase(*, confirm: bool = False) -> str:
    typed = os.environ.get(PASSPHRASE) or click.prompt(
        "Passphrase of the key", hide_input=True, err=True, confirmation_prompt=confirm
    )
    return str(typed)
