"""A provider's directory: who it is, and where it keeps what.

Trust: runs at the provider; holds ciphertexts, names, sizes and the keys of the line.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import ssl
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from conf.run_directory import check_run_name
from protocol.checks import check_range
from protocol.errors import ConfigurationError
from scripts.alone import alone
from scripts.environment import provider_environment
from scripts.flower_commands import FlowerCommands, write_connection
from scripts.superlink import HOST, is_healthy
from server.prediction.service_directory import ServiceDirectory
from server.record import sync_directory
from server.tls import Authority, TlsFiles, check_certificates, copy_certificates

SETTINGS: Final = "provider.json"
_PRIVATE_MODE: Final = 0o700
_LEFTOVERS_SECONDS: Final = 30.0
"""What a killed provider has started ends itself sooner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """Under which names and where hospitals reach the provider.

    Attributes:
        hosts: Names and addresses, the first one to be told to hospitals.
        listen: Address of this machine that the gate listens on.
        port: The gate's port.
    """

    hosts: tuple[str, ...]
    listen: str
    port: int

    def __post_init__(self) -> None:
        check_range("port", self.port, 1, 65_535)
        if not self.hosts:
            raise ConfigurationError("a provider needs a host name or an address")

    @property
    def address(self) -> str:
        """What hospitals are told."""
        return f"{self.hosts[0]}:{self.port}"


_SETTINGS_PARSER = TypeAdapter(ProviderSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCertificate:
    """Files of a certificate that the provider has from elsewhere.

    Attributes:
        certificate: PEM, with the chain up to the authority.
        key: PEM, without passphrase.
        authority: PEM; hospitals check against it.
    """

    certificate: Path
    key: Path
    authority: Path


class ProviderDirectory:
    """Files below one directory.

    Args:
        path: The directory; made absolute, because other processes use it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @property
    def tls(self) -> TlsFiles:
        """What the gate shows to the public network."""
        return TlsFiles(directory=self.path / "tls")

    @property
    def inner_tls(self) -> TlsFiles:
        """What the SuperLink shows on loopback; made anew at each start."""
        return TlsFiles(directory=self.path / "inner")

    @property
    def home(self) -> Path:
        """Flower's own directory."""
        return self.path / "flower"

    @property
    def database(self) -> Path:
        """The SuperLink's database: registered nodes, runs, messages."""
        return self.path / "superlink.db"

    @property
    def logs(self) -> Path:
        """Directory of the logs of what is started."""
        return self.path / "logs"

    @property
    def runs(self) -> Path:
        """Directory with a directory per run."""
        return self.path / "runs"

    @property
    def admitted(self) -> Path:
        """Directory with the cards of the admitted sites."""
        return self.path / "admitted"

    @property
    def prediction(self) -> ServiceDirectory:
        """What the prediction service keeps."""
        return ServiceDirectory(path=self.path / "prediction")

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the SuperLink and of the commands that talk to it."""
        return provider_environment(self.home, self.runs)

    def found(self, settings: ProviderSettings, own: OwnCertificate | None) -> None:
        """Make the directory: certificates and settings.

        Raises:
            ConfigurationError: It is one already, or the certificate does not fit.
        """
        if self.path.exists() and any(self.path.iterdir()):
            raise ConfigurationError(f"{self.path} is not empty; nothing in it is overwritten")
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(_PRIVATE_MODE)  # also one that was there: Flower's database in it has the mode of everyone's
        try:
            self.tls.directory.mkdir()
            if own is None:
                authority = Authority.generate()
                authority.write(self.tls)
                authority.issue(self.tls, settings.hosts)
            else:
                copy_certificates(self.tls, certificate=own.certificate, key=own.key, authority=own.authority)
            check_certificates(self.tls, settings.hosts)
        except ConfigurationError:
            shutil.rmtree(self.tls.directory)  # so that another try finds the directory empty
            raise
        write_whole(self.path / SETTINGS, (json.dumps(asdict(settings), indent=2) + "\n").encode())
        sync_directory(self.path.parent)

    def settings(self) -> ProviderSettings:
        """Return what `found` has written.

        Raises:
            ConfigurationError: This is no provider's directory, or its settings are damaged.
        """
        try:
            return _SETTINGS_PARSER.validate_json((self.path / SETTINGS).read_bytes())
        except FileNotFoundError:
            raise ConfigurationError(
                f"{self.path} is no provider's directory: it has no {SETTINGS}. Make one with `cipherward provider "
                "init --directory DIR --host NAME`, or say with --directory or CIPHERWARD_PROVIDER where it is"
            ) from None
        except ValidationError as error:
            raise ConfigurationError(f"{self.path / SETTINGS} is damaged: {error.errors()[0]['msg']}") from None

    @contextlib.contextmanager
    def served(self) -> Iterator[int]:
        """Be the only one who serves this directory.

        Yields:
            A descriptor to be held by all that is started: as long as one of them lives, the next start waits.

        Raises:
            ConfigurationError: Another process serves it.
        """
        complaint = f"a provider runs on {self.path} already"
        with alone(self.path / ".start.lock", complaint), (self.path / ".processes.lock").open("wb") as held:
            deadline = time.monotonic() + _LEFTOVERS_SECONDS
            while not _is_locked_now(held.fileno()):
                if time.monotonic() > deadline:
                    raise ConfigurationError(f"processes of an earlier start on {self.path} do not end")
                time.sleep(0.2)
            yield held.fileno()

    def prepare_inner(self, port: int) -> None:
        """Make the SuperLink's certificate on loopback, and tell Flower's commands where it is.

        The authority's key is not kept: it signs one certificate.
        """
        for directory in (self.home, self.logs, self.runs, self.admitted):
            directory.mkdir(mode=_PRIVATE_MODE, exist_ok=True)
        sync_directory(self.path)  # admissions and runs are kept below these
        shutil.rmtree(self.inner_tls.directory, ignore_errors=True)
        self.inner_tls.directory.mkdir(mode=_PRIVATE_MODE)
        authority = Authority.generate()
        authority.write_certificate(self.inner_tls)
        authority.issue(self.inner_tls, (HOST,))
        write_connection(self.home, f"{HOST}:{port}", self.inner_tls.authority)
        self._inner_port_file.write_text(str(port), encoding="utf-8")

    def is_running(self) -> bool:
        """Return whether the SuperLink answers."""
        try:
            port = int(self._inner_port_file.read_text(encoding="utf-8"))
            trusted = ssl.create_default_context(cafile=str(self.inner_tls.authority))
        except OSError:
            return False
        return is_healthy(port, trusted)

    def commands(self) -> FlowerCommands:
        """Return what talks to the SuperLink.

        Raises:
            ConfigurationError: It does not run.
        """
        self.settings()
        if not self.is_running():
            raise ConfigurationError(
                f"the provider does not run: start it in another terminal with `cipherward provider start --directory "
                f"{self.path}`"
            )
        return FlowerCommands(self.environment)

    def run(self, name: str) -> Path:
        """Return a run's directory.

        Raises:
            ConfigurationError: There is no such run.
        """
        directory = self.runs / check_run_name(name)
        if not directory.is_dir():
            raise ConfigurationError(f"{self.runs} holds no run {name}; `cipherward provider status` lists them")
        return directory

    def run_names(self) -> list[str]:
        """Return the names of all runs, oldest first."""
        return sorted(path.name for path in self.runs.glob("*") if path.is_dir())

    @property
    def _inner_port_file(self) -> Path:
        return self.inner_tls.directory / "port"


def _is_locked_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that a crash leaves the old one or the new; it is on disk when this returns."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)
