"""The commands of whoever runs the prediction service, on a provider's directory that nobody serves."""

from __future__ import annotations

import pytest
from prediction_service import Client, described
from typer.testing import CliRunner

from protocol.errors import ConfigurationError
from scripts.cli import app
from scripts.provider.directory import ProviderDirectory, ProviderSettings
from scripts.superlink import free_port
from server.prediction.client_registry import Allowance, ClientRegistry
from server.prediction.model_store import ModelStore

CLEVELAND = Client()


@pytest.fixture
def provider(tmp_path):
    directory = ProviderDirectory(tmp_path / "provider")
    directory.found(ProviderSettings(hosts=("localhost",), listen="127.0.0.1", port=free_port()), None)
    directory.prediction.path.mkdir()
    return directory


@pytest.fixture
def registry(provider):
    return ClientRegistry(provider.prediction.clients)


@pytest.fixture
def store(provider):
    return ModelStore(provider.prediction.models)


def service(provider, *line):
    """Run a command that succeeds and return what it printed."""
    arguments = ["service", *line, "--directory", str(provider.path)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return done.output


def test_who_is_expelled_leaves_no_model(provider, registry, store):
    registry.admit(CLEVELAND.enrolment, Allowance())
    store.publish(described("own", owner="cleveland", key=CLEVELAND.public_key), {})
    store.publish(described(), {})

    said = service(provider, "expel", "cleveland")

    assert "own is deleted" in said
    assert store.names() == ["plain"]
    assert registry.find("cleveland") is None
    with pytest.raises(ConfigurationError, match="not admitted"):
        service(provider, "expel", "cleveland")


def test_expelling_once_more_deletes_models_that_were_left(provider, store):
    store.publish(described("own", owner="cleveland", key=CLEVELAND.public_key), {})

    assert "own is deleted" in service(provider, "expel", "cleveland")
    assert store.names() == []
