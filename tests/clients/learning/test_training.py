from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import clients
from clients.data.table import STANDARD_RANGE
from clients.learning.evaluation import score
from clients.learning.models import initial_values
from clients.learning.training import train
from protocol.terms import ModelTerms, TrainingTerms

REGRESSION = ModelTerms()
MLP = ModelTerms(kind="mlp", hidden=(8,))
QUADRATIC = ModelTerms(kind="mlp", hidden=(16,), activation="quadratic")
PLAIN = TrainingTerms(batch_size=16, learning_rate=0.1, weight_decay=0.0)


@pytest.fixture(scope="module")
def patients():
    rng = np.random.default_rng(5)
    features = rng.normal(size=(90, 6)).astype(np.float32)
    labels = (features @ np.arange(6.0) + rng.normal(size=90) > 0).astype(np.int8)
    return features, labels


def generator():
    return np.random.Generator(np.random.PCG64(9))


def reference_regression(start, features, labels, training, *, epochs, rng, is_bias_pulled=True):
    """Plain SGD for logistic regression in float64, gradients by hand."""
    weights, bias = start[:-1].copy(), start[-1]
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        for first in range(0, len(labels), training.batch_size):
            batch = order[first : first + training.batch_size]
            error = (1 / (1 + np.exp(-(features[batch] @ weights + bias))) - labels[batch]) / len(batch)
            pull_weights = training.weight_decay * weights + training.proximal * (weights - start[:-1])
            pull_bias = is_bias_pulled * training.proximal * (bias - start[-1])
            weights = weights - training.learning_rate * (error @ features[batch] + pull_weights)
            bias = bias - training.learning_rate * (error.sum() + pull_bias)
    return np.append(weights, bias)


@pytest.mark.parametrize(
    "change", [{}, {"weight_decay": 0.5}, {"proximal": 2.0}, {"batch_size": 40}, {"batch_size": 999}]
)
def test_training_is_plain_sgd_with_decay_on_weights_and_the_proximal_pull(patients, change):
    training = replace(PLAIN, **change)
    start = np.linspace(-1, 1, 7).astype(np.float32).astype(np.float64)

    trained = train(REGRESSION, start, *patients, training, epochs=3, rng=generator())

    np.testing.assert_allclose(
        trained, reference_regression(start, *patients, training, epochs=3, rng=generator()), atol=2e-6
    )


def test_the_proximal_pull_leaves_personal_tensors_alone(patients):
    start = np.linspace(-1, 1, 7).astype(np.float32).astype(np.float64)
    training = replace(PLAIN, proximal=2.0)

    trained, shared = (
        train(replace(REGRESSION, personal=personal), start, *patients, training, epochs=3, rng=generator())
        for personal in (("output.bias",), ())
    )

    expected = reference_regression(start, *patients, training, epochs=3, rng=generator(), is_bias_pulled=False)
    np.testing.assert_allclose(trained, expected, atol=2e-6)
    assert abs(trained[-1] - start[-1]) > 1.2 * abs(shared[-1] - start[-1])


@pytest.mark.parametrize("model", [REGRESSION, MLP])
def test_training_lowers_the_loss_and_leaves_its_start_alone(patients, model):
    start = initial_values(model, 6, 1)
    before = start.copy()

    trained = train(model, start, *patients, PLAIN, epochs=20, rng=generator())

    np.testing.assert_array_equal(start, before)
    assert trained.dtype == np.float64
    np.testing.assert_array_equal(trained, trained.astype(np.float32))
    assert np.abs(trained - start).max() > 0.1


def test_the_quadratic_activation_learns_also_where_cells_are_at_the_end_of_the_range(patients):
    features, labels = patients
    rng = np.random.default_rng(6)
    wrong = features.copy()
    wrong[rng.random(features.shape) < 0.05] = STANDARD_RANGE
    start = initial_values(QUADRATIC, 6, 1)

    trained = train(QUADRATIC, start, wrong, labels, PLAIN, epochs=60, rng=generator())

    assert np.isfinite(trained).all()
    assert roc_auc_score(labels, score(QUADRATIC, trained, features)) > 0.9


@pytest.mark.parametrize("model", [REGRESSION, MLP])
def test_the_proximal_term_keeps_an_update_near_its_start(patients, model):
    start = initial_values(model, 6, 1)
    free, held = (
        train(model, start, *patients, replace(PLAIN, proximal=mu), epochs=5, rng=generator()) for mu in (0.0, 5.0)
    )

    assert np.linalg.norm(held - start) < 0.5 * np.linalg.norm(free - start)


ROOT = Path(clients.__file__).parents[1]
PROGRAM = """
import hashlib
import numpy as np, torch
from clients.learning.training import train
from protocol.terms import ModelTerms, TrainingTerms
torch.set_num_threads({threads})
rng = np.random.default_rng(2)
features = rng.normal(size=(600, 4000)).astype(np.float32)
labels = (features[:, 0] > 0).astype(np.int8)
model = ModelTerms(kind="mlp", hidden=(64,))
training = TrainingTerms(batch_size=64)
trained = train(model, rng.normal(size=256129) / 30, features, labels, training, epochs=1, rng=rng)
print(hashlib.sha256(trained.tobytes()).hexdigest())
"""


def test_another_process_with_other_threads_gets_the_same_bits():
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(threads=threads)], capture_output=True, check=True, cwd=ROOT
        )
        for threads in (1, 2)
    ]

    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout


def test_divergence_shows_as_values_that_the_grid_refuses(patients):
    training = replace(PLAIN, learning_rate=1e3, weight_decay=1e3)

    assert not np.isfinite(train(REGRESSION, np.zeros(7), *patients, training, epochs=50, rng=generator())).all()
