"""What workers keep in memory has a bound, and what no longer fits is made anew."""

from __future__ import annotations

import numpy as np
import pytest
from published import LOGISTIC, client, encrypted, patients, plain, trained_model

from protocol.prediction.parameters import LINEAR
from server.prediction import encrypted_models, plain_models
from server.prediction.evaluation import ENCRYPTED_FILE, answer_query
from server.prediction.kept import Kept
from server.prediction.model_store import ModelStore


def test_what_was_used_longest_ago_goes_before_the_next_is_made():
    kept, made = Kept(10), []

    def get(key, size):
        def make():
            made.append((key, sorted(kept._values)))
            return key.upper()

        return kept.get(key, make, size)

    assert [get("a", 4), get("b", 4), get("a", 4), get("c", 4), get("a", 4), get("b", 4)] == list("ABACAB")
    assert made == [("a", []), ("b", ["a"]), ("c", ["a"]), ("b", ["a"])]
    assert get("large", 11) == "LARGE"
    assert sorted(kept._values) == ["large"]


def test_what_cannot_be_made_is_not_kept():
    kept = Kept(10)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: 1 // 0, 1)
    assert kept.get("a", lambda: 1, 1) == 1


@pytest.mark.parametrize(("module", "form"), [(plain_models, "plain"), (encrypted_models, "encrypted")])
def test_a_wide_model_keeps_no_more_than_its_bound_and_scores_the_same(monkeypatch, module, form):
    monkeypatch.setattr(module, "_MULTIPLIER_BYTES", 400_000)
    asker, trained = client(LINEAR), trained_model(20, LOGISTIC)
    model = plain(trained) if form == "plain" else encrypted(trained, asker)

    for count in (1, 4096, 1000, 1):
        records = patients(count, 20)
        scores = model.score(records, asker)
        assert np.abs(scores - trained.logits(records)).max() <= LINEAR.tolerance
        assert model.model._multipliers._held_bytes() <= 400_000


def test_a_model_that_is_asked_again_is_not_read_again(tmp_path, monkeypatch):
    owner = client(LINEAR)
    model = encrypted(trained_model(5, LOGISTIC), owner)
    ModelStore(tmp_path).publish(model.description, {ENCRYPTED_FILE: model.weights})
    (tmp_path / "key").write_bytes(owner.public_key)
    query = model.query(patients(3, 5), owner).to_bytes(model.description)
    first = answer_query(model=tmp_path / "model", key=tmp_path / "key", query=query)

    (tmp_path / "model" / ENCRYPTED_FILE).unlink()

    assert answer_query(model=tmp_path / "model", key=tmp_path / "key", query=query) == first
