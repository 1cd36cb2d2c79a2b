"""Certificates for a provider: a small authority of its own, and checks of certificates that come from elsewhere.

Trust: runs at the provider. The keys here protect the line, not the patients: whoever has them sees what the provider
sees. Hospitals get the authority's certificate and nothing else.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import ConfigurationError

LOOPBACK: Final = ("127.0.0.1", "localhost")
"""Names that every server certificate made here carries beside its own."""

AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 397
_CLOCK_TOLERANCE: Final = timedelta(hours=1)
_LONGEST_COMMON_NAME: Final = 64
_CERTIFICATE_MODE: Final = 0o644
_KEY_MODE: Final = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where an authority's and a server's certificate and keys are.

    Attributes:
        directory: Holds ca.crt, server.crt and server.key; ca.key only if the authority was made here.
    """

    directory: Path

    @property
    def authority(self) -> Path:
        """The authority's certificate: what whoever connects needs."""
        return self.directory / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """The authority's private key."""
        return self.directory / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.directory / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.directory / "server.key"


class Authority:
    """A certificate authority for one provider: EC P-256, and nothing below it but servers."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """Make a new one, valid for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Cipherward provider's own authority")
        certificate = (
            _builder(name, name, key.public_key(), key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, files: TlsFiles) -> Self:
        """Load the one that was written.

        Raises:
            ConfigurationError: The files are damaged, or hold something else.
        """
        try:
            certificate = x509.load_pem_x509_certificate(files.authority.read_bytes())
            key = load_pem_private_key(files.authority_key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError):
            raise ConfigurationError(f"{files.directory} holds no readable ca.crt and ca.key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigurationError(f"{files.authority_key} is not the key of {files.authority}")
        return cls(certificate, key)

    def write(self, files: TlsFiles) -> None:
        """Write certificate and key.

        Raises:
            FileExistsError: One of them exists.
        """
        _write_new(files.authority, self._certificate.public_bytes(Encoding.PEM), _CERTIFICATE_MODE)
        _write_new(files.authority_key, _key_bytes(self._key), _KEY_MODE)

    def write_certificate(self, files: TlsFiles) -> None:
        """Write the certificate alone: an authority whose key is not kept signs nothing more.

        Raises:
            FileExistsError: It exists.
        """
        _write_new(files.authority, self._certificate.public_bytes(Encoding.PEM), _CERTIFICATE_MODE)

    def issue(self, files: TlsFiles, hosts: tuple[str, ...]) -> None:
        """Write a server's certificate and key, valid for 397 days.

        Args:
            files: Where to write them.
            hosts: Names and addresses of the server, the first one its common name; loopback's are added.

        Raises:
            ConfigurationError: A host is neither a name nor an address.
            FileExistsError: One of the files exists.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = [_general_name(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]
        subject = _name(hosts[0][:_LONGEST_COMMON_NAME])
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key(), self._key.public_key(), SERVER_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        _write_new(files.certificate, certificate.public_bytes(Encoding.PEM), _CERTIFICATE_MODE)
        _write_new(files.key, _key_bytes(key), _KEY_MODE)


def copy_certificates(files: TlsFiles, *, certificate: Path, key: Path, authority: Path) -> None:
    """Copy a certificate from elsewhere, with its key and the authority that hospitals check it against.

    Raises:
        ConfigurationError: A file cannot be read.
        FileExistsError: One of the copies exists.
    """
    copies = (
        (files.authority, authority, _CERTIFICATE_MODE),
        (files.certificate, certificate, _CERTIFICATE_MODE),
        (files.key, key, _KEY_MODE),
    )
    for path, source, mode in copies:
        try:
            data = source.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{source} cannot be read: {error.strerror}") from None
        _write_new(path, data, mode)


def check_certificates(files: TlsFiles, hosts: tuple[str, ...]) -> None:
    """Check that whoever knows the authority reaches the server under each of its names, by doing just that.

    The handshake runs in memory, with the same checks that a hospital's machine makes: key, chain, dates, names.

    Raises:
        ConfigurationError: Says which file or which name does not fit.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigurationError(
            f"{files.certificate.name} and {files.key.name} in {files.directory} do not belong together ({error})"
        ) from None
    try:
        client = ssl.create_default_context(cafile=str(files.authority))
    except OSError as error:
        raise ConfigurationError(f"{files.authority} holds no certificate ({error})") from None
    for host in hosts:
        try:
            _shake_hands(client, server, host)
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(
                f"a hospital with {files.authority.name} would not trust this server as {host}: {error.verify_message}"
            ) from None


def days_left(files: TlsFiles) -> float:
    """Return for how many days the server's certificate is still valid; negative if it is not."""
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = True
    while waiting:
        waiting = False
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting = True


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - _CLOCK_TOLERANCE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if not all(label and label.isascii() and label.replace("-", "a").isalnum() for label in labels):
        raise ConfigurationError(f"{host!r} is neither a host name nor an address")
    return x509.DNSName(host)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
