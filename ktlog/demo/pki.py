"""A throw-away certificate authority for the demo and for tests.

Its key is never written down: it signs one server certificate and is gone.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ktlog.durable import file_errors, write_atomic

CA_FILE = "ca.pem"
CERTIFICATE_FILE = "server.pem"
KEY_FILE = "server.key"
LIFETIME_DAYS = 7


@dataclass(frozen=True)
class Pki:
    """Three PEM files: what clients trust, and the server's chain and private key (mode 0600)."""

    ca_file: Path
    certificate_file: Path
    key_file: Path


def pki_in(directory: Path) -> Pki:
    """The names that create_pki gives its files in *directory*."""
    return Pki(directory / CA_FILE, directory / CERTIFICATE_FILE, directory / KEY_FILE)


def create_pki(
    directory: Path, hosts: Sequence[str], now: int | None = None, lifetime_days: int = LIFETIME_DAYS
) -> Pki:
    """Make an authority and a certificate for *hosts* in *directory*, which is made if need be.

    Both are valid from shortly before *now* (Unix seconds; None: the clock's) for *lifetime_days*.

    Raises:
        StoreError: the directory cannot be written.
    """
    begin = datetime.datetime.fromtimestamp((int(time.time()) if now is None else now) - 3600, tz=datetime.UTC)
    end = begin + datetime.timedelta(days=lifetime_days)
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ktlog demo authority")])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    issuer_key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ktlog demo server")])
    server = (
        _builder(server_name, ca_name, server_key.public_key(), begin, end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(server_key.public_key()), critical=False)
        .add_extension(issuer_key_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pki = pki_in(directory)
    with file_errors(directory):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    secret = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomic(pki.key_file, secret, mode=0o600)
    write_atomic(pki.certificate_file, server.public_bytes(pem))
    write_atomic(pki.ca_file, ca.public_bytes(pem))
    return pki


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey,
    begin: datetime.datetime, end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
