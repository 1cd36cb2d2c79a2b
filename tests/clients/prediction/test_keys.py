"""Prediction keys: one seed, one key; and no way out."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from published import LOGISTIC, client, patients, plain, trained_model

from clients.prediction.keys import PredictionKey
from protocol.errors import SecretMaterialError
from protocol.prediction.parameters import LINEAR


def test_one_seed_is_one_key_and_another_seed_another():
    seed = PredictionKey.draw_seed()
    model, records = plain(trained_model(5, LOGISTIC)), patients(4, 5)
    key = PredictionKey(seed, LINEAR)
    asker = type(client(LINEAR))(key=key, public_key=key.public_key().to_bytes(LINEAR))
    query = model.query(records, asker)
    answer = model.answer(query, asker)

    twin = type(asker)(key=PredictionKey(seed, LINEAR), public_key=asker.public_key)
    stranger = type(asker)(key=PredictionKey.draw(LINEAR), public_key=asker.public_key)

    assert np.array_equal(model.read(answer, query, twin), model.read(answer, query, asker))
    assert not np.allclose(model.read(answer, query, stranger), model.read(answer, query, asker))


def test_each_public_key_and_each_encryption_is_another():
    asker = client(LINEAR)
    assert asker.key.public_key().to_bytes(LINEAR) != asker.key.public_key().to_bytes(LINEAR)

    model, records = plain(trained_model(5, LOGISTIC)), patients(4, 5)
    first, again = (model.query(records, asker) for _ in range(2))
    assert first.seeds != again.seeds
    assert first.header.request != again.header.request
    assert not np.array_equal(first.polynomials, again.polynomials)


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_key_stays_in_its_process(leave):
    with pytest.raises(SecretMaterialError):
        leave(client(LINEAR).key)


def test_a_key_does_not_show_itself():
    assert repr(client(LINEAR).key) == "PredictionKey(<redacted>)"


def test_a_device_cannot_read_what_it_wrote():
    assert not hasattr(client(LINEAR).device, "decrypt")
