from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from published import LOGISTIC, plain, trained_model
from served import InProcessService

from clients.prediction.key_store import KeyStore
from clients.secrets.enrolment import enrol
from clients.secrets.vault import Vault
from protocol.agreement import SiteId

INPUTS = 5


@pytest.fixture
def vault(tmp_path) -> Vault:
    """An enrolled clinic with a prediction key."""
    vault = Vault(tmp_path / "vault")
    enrol(vault, SiteId("clinic"))
    KeyStore(vault).create()
    return vault


@pytest.fixture
def trained():
    """A model in plaintext, whose columns are in units of their own."""
    model = trained_model(INPUTS, LOGISTIC)
    return replace(model, mean=np.linspace(-3, 70, INPUTS), deviation=np.linspace(0.5, 20, INPUTS))


@pytest.fixture
def offered(trained) -> InProcessService:
    """A service that has the model in plaintext."""
    service = InProcessService()
    service.offer(plain(trained))
    return service


@pytest.fixture
def records(trained) -> np.ndarray:
    """Patients in the columns' units."""
    generator = np.random.default_rng(3)
    return trained.mean + trained.deviation * generator.normal(size=(40, INPUTS))
