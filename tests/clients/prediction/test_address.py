"""Where a client says that the service is."""

from __future__ import annotations

import pytest

from clients.prediction.service import PredictionService
from clients.secrets.identity import Identity
from protocol.errors import ConfigurationError


@pytest.mark.parametrize("address", ["", "https://", "http://scores.example:9093", "scores.example:9093/v1", "a:b"])
def test_what_is_no_host_and_port_is_refused_before_anything_is_sent(address):
    with pytest.raises(ConfigurationError, match="is no HOST:PORT"):
        PredictionService(address, None, Identity.generate(), "clinic")


@pytest.mark.parametrize("address", ["scores.example:9093", "https://scores.example:9093", "[::1]:9093"])
def test_a_host_and_port_is_taken_with_or_without_its_scheme(address):
    with PredictionService(address, None, Identity.generate(), "clinic") as service:
        assert address in repr(service)
