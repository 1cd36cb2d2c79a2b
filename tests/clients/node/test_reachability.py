"""A site asks for the provider before a run: over TLS that its CA file vouches for, and for the time."""

from __future__ import annotations

import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from clients.node.reachability import MOST_SECONDS_AHEAD, MOST_SECONDS_BEHIND, check_provider
from protocol.errors import ConfigurationError


def certificate(directory, *, begins=-1, ends=1):
    """Write a certificate for 127.0.0.1 that is its own authority, valid for these days from now; return both paths."""
    key, name = generate_private_key(SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gate")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=ends))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "ca.crt").write_bytes(made.public_bytes(Encoding.PEM))
    (directory / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return directory / "ca.crt", directory / "server.key"


class Gate:
    """A server that answers /health, at a time and with a status of its choice."""

    def __init__(self, paths):
        gate = self
        self.ahead, self.status, self.date = 0.0, 200, True

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response_only(gate.status if self.path == "/health" else 404)
                if gate.date:
                    # a site that is ahead sees a gate that is behind
                    self.send_header("Date", formatdate(time.time() - gate.ahead, usegmt=True))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*paths)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.server.handle_error = lambda *arguments: None
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def open_gate():
    gates = []

    def start(paths):
        gates.append(Gate(paths))
        return gates[-1]

    yield start
    for gate in gates:
        gate.stop()


@pytest.fixture
def gate(open_gate, tmp_path):
    return open_gate(certificate(tmp_path))


def test_a_provider_that_answers_is_reached(gate, tmp_path):
    assert check_provider(gate.address, tmp_path / "ca.crt").startswith(f"{gate.address} answers; the clocks differ by")


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (86_400, r"86[34]\d\d s ahead of"),
        (-86_400, r"86[34]\d\d s behind"),
        (7, r"\d s ahead of"),
        (-33, r"3\d s behind"),
    ],
)
def test_a_clock_that_flower_would_refuse_is_told_with_its_seconds(gate, tmp_path, ahead, words):
    gate.ahead = ahead
    with pytest.raises(ConfigurationError, match=f"this machine's clock is {words} the provider's.*NTP"):
        check_provider(gate.address, tmp_path / "ca.crt")


@pytest.mark.parametrize("ahead", [2, -2, -25])
def test_a_clock_that_flower_lets_pass_is_good(gate, tmp_path, ahead):
    gate.ahead = ahead
    assert "answers" in check_provider(gate.address, tmp_path / "ca.crt")


def test_the_limits_are_inside_flower_s():
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE  # noqa: PLC0415 - only to compare with

    assert MOST_SECONDS_AHEAD + 1 <= SYSTEM_TIME_TOLERANCE
    assert MOST_SECONDS_BEHIND + 1 <= TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def test_a_provider_that_another_authority_vouches_for_is_refused(gate, tmp_path):
    (tmp_path / "other").mkdir()
    ca, _ = certificate(tmp_path / "other")

    with pytest.raises(ConfigurationError, match="certificate that is not good here"):
        check_provider(gate.address, ca)
    with pytest.raises(ConfigurationError, match="certificate that is not good here"):
        check_provider(gate.address, None)


def test_a_certificate_of_another_time_hints_at_the_date(open_gate, tmp_path):
    gate = open_gate(certificate(tmp_path, begins=1, ends=2))

    with pytest.raises(ConfigurationError, match=r"not yet valid.*this machine's date"):
        check_provider(gate.address, tmp_path / "ca.crt")


def test_who_is_not_there_is_told(gate, tmp_path):
    for address in ("127.0.0.1:1", "gate.invalid:443", "not a host", "127.0.0.1:99999"):
        with pytest.raises(ConfigurationError):
            check_provider(address, tmp_path / "ca.crt")


def test_who_is_not_a_gate_is_told(gate, tmp_path):
    gate.status = 503
    with pytest.raises(ConfigurationError, match="with 503"):
        check_provider(gate.address, tmp_path / "ca.crt")
    gate.status, gate.date = 200, False
    with pytest.raises(ConfigurationError, match="no date"):
        check_provider(gate.address, tmp_path / "ca.crt")


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_without_certificates_is_named(gate, tmp_path, content):
    path = tmp_path / "wrong.crt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"wrong\.crt is no file of certificates"):
        check_provider(gate.address, path)
