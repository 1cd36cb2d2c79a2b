from __future__ import annotations

import inspect
import re

import pytest

from protocol import errors
from protocol.errors import ConfigurationError, FederationError, ProtocolError

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
PROTOCOL_ERRORS = [error for error in CLASSES if issubclass(error, ProtocolError)]


def test_a_peer_is_told_one_constant():
    assert errors.PUBLIC_REFUSAL == "refused"


def test_the_tree_in_the_docstring_names_every_error_and_no_other():
    drawn = re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__)

    assert sorted(drawn) == sorted(error.__name__ for error in CLASSES)


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_a_federation_error(error):
    assert issubclass(error, FederationError)


@pytest.mark.parametrize("error", PROTOCOL_ERRORS)
def test_a_protocol_error_keeps_expected_and_got(error):
    raised = error("round", expected=3, got=4)

    assert (raised.what, raised.expected, raised.got) == ("round", 3, 4)
    assert str(raised) == "round: expected 3, got 4"


def test_a_protocol_error_without_expectation_says_only_what():
    assert str(ProtocolError("agreement")) == "agreement"


def test_an_expected_zero_is_still_said():
    assert str(ProtocolError("updates", expected=0, got=None)) == "updates: expected 0, got None"


@pytest.mark.parametrize("error", [errors.SecretMaterialError, errors.RunPausedError, errors.ValueRefusedError])
def test_what_must_stop_a_run_is_not_caught_with_dropped_messages(error):
    assert not issubclass(error, ProtocolError)
    assert not issubclass(error, ConfigurationError)
