from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from clients.learning.evaluation import FederatedMetrics
from clients.learning.learner_state import LearnerState
from clients.learning.optimisers import OptimiserState
from clients.learning.statistics import Standardisation

METRICS = FederatedMetrics(
    records=9,
    loss=0.1,
    brier=0.2,
    accuracy=0.3,
    accuracy_bound=0.05,
    auc=None,
    auc_bound=None,
    training_loss=0.4,
    confusion=(5, 0, 4, 0),
    positive_scores=(0, 5),
    negative_scores=(4, 0),
)
FIRST = LearnerState(
    model=np.array([0.1, -0.0]), step_exponents=np.array([-19, -20]), least_exponents=np.array([-40, -41])
)
LAST = replace(
    FIRST,
    standardisation=Standardisation(mean=np.array([1.5]), deviation=np.array([0.1]), records=77),
    optimiser=OptimiserState(steps=2, first=np.array([0.5, -0.0]), second=np.array([0.25, 1.0])),
    best_loss=0.25,
    federated=METRICS,
)


@pytest.mark.parametrize("state", [FIRST, LAST, replace(LAST, federated=replace(METRICS, auc=0.9, auc_bound=0.01))])
def test_a_state_survives_storage_bit_for_bit(state):
    restored = LearnerState.from_tensors(load(save(state.to_tensors())))

    assert restored.shared_digest() == state.shared_digest()
    assert restored.federated == state.federated
    assert restored.best_loss == state.best_loss
    assert restored.optimiser.steps == state.optimiser.steps
    assert restored.optimiser.first.tobytes() == state.optimiser.first.tobytes()
    assert restored.optimiser.second.tobytes() == state.optimiser.second.tobytes()
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
        {"least_exponents": np.array([-40, -40])},
        {"best_loss": math.inf},
        {"federated": None},
        {"federated": replace(METRICS, training_loss=0.5)},
        {"federated": replace(METRICS, accuracy_bound=0.06)},
        {"federated": replace(METRICS, confusion=(4, 1, 4, 0))},
        {"federated": replace(METRICS, positive_scores=(1, 4))},
        {"federated": replace(METRICS, positive_scores=(4, 0), negative_scores=(0, 5))},
        {"optimiser": OptimiserState()},
        {"optimiser": replace(LAST.optimiser, steps=3)},
        {"optimiser": replace(LAST.optimiser, first=np.array([0.5, 0.0]))},
        {"optimiser": replace(LAST.optimiser, first=LAST.optimiser.second, second=LAST.optimiser.first)},
        {"standardisation": None},
        {"standardisation": replace(LAST.standardisation, records=78)},
    ],
)
def test_every_difference_changes_the_digest(change):
    assert replace(LAST, **change).shared_digest() != LAST.shared_digest()


def test_the_digest_is_fixed_for_ever():
    assert LAST.shared_digest().hex() == "9a3ea682384cf771f9572bd9c74c1ff5fbd3801e46951814f07b3db7de59a9de"


def test_repr_shows_no_parameter():
    assert "0.2" not in repr(FIRST)
