from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from clients.evaluation import FederatedMetrics
from clients.learner_state import LearnerState
from clients.statistics import Standardisation

METRICS = FederatedMetrics(records=9, loss=0.1, brier=0.2, accuracy=0.3, auc=None, auc_bound=None, training_loss=0.4)
FIRST = LearnerState(model=np.array([0.1, -0.0]), step_exponents=np.array([-19, -20]))
LAST = replace(
    FIRST,
    standardisation=Standardisation(mean=np.array([1.5]), deviation=np.array([0.1]), records=77),
    best_loss=0.25,
    federated=METRICS,
)


@pytest.mark.parametrize("state", [FIRST, LAST, replace(LAST, federated=replace(METRICS, auc=0.9, auc_bound=0.01))])
def test_a_state_survives_storage_bit_for_bit(state):
    restored = LearnerState.from_tensors(load(save(state.to_tensors())))

    assert restored.shared_digest() == state.shared_digest()
    assert restored.federated == state.federated
    assert restored.best_loss == state.best_loss
    assert (restored.standardisation is None) == (state.standardisation is None)
    assert restored.model.tobytes() == state.model.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"model": np.array([0.1, 0.0])},
        {"model": np.array([[0.1, -0.0]])},
        {"model": np.array([math.nextafter(0.1, 1), -0.0])},
        {"step_exponents": np.array([-19, -21])},
        {"step_exponents": np.array([-19.0, -20.0])},
        {"best_loss": math.inf},
        {"federated": None},
        {"federated": replace(METRICS, training_loss=0.5)},
        {"standardisation": None},
        {"standardisation": replace(LAST.standardisation, records=78)},
    ],
)
def test_every_difference_changes_the_digest(change):
    assert replace(LAST, **change).shared_digest() != LAST.shared_digest()


def test_the_digest_is_fixed_for_ever():
    assert LAST.shared_digest().hex() == "c6e1388b554c376c22866d4c9ee9531167e3ea3d30739a9159e87c946471225d"


def test_repr_shows_no_parameter():
    assert "0.2" not in repr(FIRST)
