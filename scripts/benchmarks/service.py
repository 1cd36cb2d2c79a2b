"""A prediction service on loopback, with models and clients made for a benchmark.

Trust: a benchmark: provider and clients on one machine.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import psutil

from clients.prediction.keys import PredictionKey
from clients.prediction.records import encrypt_records, read_logits
from clients.prediction.service import PredictionService
from clients.secrets.enrolment import enrol
from clients.secrets.identity_file import read_identity
from clients.secrets.vault import Vault
from protocol.agreement import SiteId
from protocol.data_terms import ColumnTerms, DataTerms
from protocol.errors import RunFailedError
from protocol.prediction.description import ModelDescription
from protocol.prediction.messages import Answer, Query, key_id
from protocol.prediction.model_file import TrainedModel, model_file
from protocol.prediction.parameters import PARAMETER_SETS
from protocol.terms import ModelTerms, Terms
from scripts.environment import program
from scripts.prediction.known_answer import Records
from scripts.provider.directory import ProviderDirectory, ProviderSettings
from scripts.superlink import HOST, free_port
from scripts.supervisor import supervised
from server.prediction.client_registry import Allowance, ClientRegistry
from server.prediction.model_store import ModelStore
from server.prediction.publication import publish_own

LINEAR_MODEL: Final = "linear"
QUADRATIC_MODEL: Final = "quadratic"
_START_SECONDS: Final = 60.0
_MOST: Final = 1_000_000
_SEED: Final = 76


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchClient:
    """A client with keys of its own.

    Attributes:
        service: The service, as it sees it.
        keys: Name of a parameter set -> its key.
        public_keys: Name of a parameter set -> the public key that the service knows.
    """

    service: PredictionService
    keys: Mapping[str, PredictionKey]
    public_keys: Mapping[str, bytes]

    def query(self, description: ModelDescription, records: Records) -> Query:
        """Encrypt standardised records."""
        name = description.parameters
        return encrypt_records(records, description, self.keys[name], key_id(self.public_keys[name]))

    def send(self, description: ModelDescription, query: Query) -> bytes:
        """Have a query answered."""
        return self.service.predict(description.name, query.to_bytes(description))

    def read(self, description: ModelDescription, query: Query, answer: bytes) -> Records:
        """Decrypt an answer to logits."""
        checked = Answer.from_bytes(answer, description, query.header)
        return read_logits(checked, description, self.keys[description.parameters])


class BenchService:
    """A running `cipherward serve`; a context manager.

    Args:
        inputs: Of both models.
        hidden: Units of the quadratic one.
    """

    def __init__(self, *, inputs: int, hidden: int) -> None:
        self._stack = contextlib.ExitStack()
        self._path = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cipherward-bench-")))
        self._port, self._metrics = free_port(), free_port()
        self._provider = ProviderDirectory(self._path / "provider")
        self._provider.found(ProviderSettings(hosts=("localhost",), listen=HOST, port=free_port()), None)
        self._provider.prediction.path.mkdir(mode=0o700)
        self.models = {
            LINEAR_MODEL: self._publish(LINEAR_MODEL, inputs, ModelTerms()),
            QUADRATIC_MODEL: self._publish(
                QUADRATIC_MODEL, inputs, ModelTerms(kind="mlp", hidden=(hidden,), activation="quadratic")
            ),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> BenchService:
        log = self._path / "serve.log"
        command = [
            program("cipherward"), "serve", "--directory", str(self._provider.path),
            "--port", str(self._port), "--metrics-port", str(self._metrics),
        ]  # fmt: skip
        working = Path(tempfile.mkdtemp(prefix="cipherward-"))
        self._process = self._stack.enter_context(
            supervised(command, environment=os.environ, directory=working, log=log)
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RunFailedError(f"the service did not start:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def describe(self, model: str) -> ModelDescription:
        """Return a model's description."""
        return self.models[model].describe(model)

    @contextlib.contextmanager
    def client(self, name: str) -> Iterator[BenchClient]:
        """Enrol and admit a client, and have its keys registered."""
        vault = Vault(self._path / name)
        enrolment = enrol(vault, SiteId(name))
        allowance = Allowance(patients_per_day=1000 * _MOST, requests_per_minute=_MOST)
        ClientRegistry(self._provider.prediction.clients).admit(enrolment, allowance)
        service = PredictionService.from_vault(
            vault, read_identity(vault, None), f"localhost:{self._port}", self._provider.tls.authority
        )
        keys = {parameters.name: PredictionKey.draw(parameters) for parameters in PARAMETER_SETS}
        public_keys = {
            parameters.name: keys[parameters.name].public_key().to_bytes(parameters) for parameters in PARAMETER_SETS
        }
        for public_key in public_keys.values():
            service.register_key(public_key)
        try:
            yield BenchClient(service=service, keys=keys, public_keys=public_keys)
        finally:
            service.close()

    def statuses(self) -> dict[str, int]:
        """Return how many predictions were answered with each status."""
        counted: dict[str, int] = {}
        for line in httpx.get(f"http://127.0.0.1:{self._metrics}/metrics", trust_env=False).text.splitlines():
            if line.startswith("cipherward_requests_total{") and "predictions" in line:
                status = line.partition('status="')[2].partition('"')[0]
                counted[status] = counted.get(status, 0) + round(float(line.rpartition(" ")[2]))
        return counted

    def memory_bytes(self) -> int:
        """Return what the service and its workers hold."""
        if self._process is None:
            return 0
        total = 0
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def _publish(self, name: str, inputs: int, terms: ModelTerms) -> TrainedModel:
        """Publish a model with random weights."""
        generator = np.random.default_rng(_SEED)
        columns = tuple(ColumnTerms(name=f"input-{number}", centre=0.0, scale=1.0) for number in range(inputs))
        data = model_file(
            Terms(data=DataTerms(name="made-up", columns=columns), model=terms),
            {key: generator.normal(scale=0.5, size=shape) for key, shape in terms.tensor_shapes(inputs).items()},
            mean=np.zeros(inputs),
            deviation=np.ones(inputs),
        )
        publish_own(ModelStore(self._provider.prediction.models), name, data)
        return TrainedModel.from_bytes(data)

    def _is_healthy(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(
                f"https://localhost:{self._port}/health",
                verify=ssl.create_default_context(cafile=self._provider.tls.authority),
                trust_env=False,
            )
            return answer.is_success
        return False
