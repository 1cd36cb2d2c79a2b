from __future__ import annotations

import math

import pytest

from protocol.errors import ConfigurationError
from protocol.terms import (
    CohortTerms,
    CryptoTerms,
    DataTerms,
    FeatureTerms,
    ModelTerms,
    TrainingTerms,
    check_choice,
    check_range,
)

AGE = FeatureTerms(name="age", centre=50.0, scale=20.0)


def data(**changes):
    return DataTerms(**({"name": "table", "features": (AGE,)} | changes))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: FeatureTerms(name="age", centre=math.nan), r"data\.features\[age\]\.centre = nan"),
        (lambda: FeatureTerms(name="age", centre=-2e12), r"data\.features\[age\]\.centre"),
        (lambda: FeatureTerms(name="age", scale=0.0), r"data\.features\[age\]\.scale = 0\.0 is outside"),
        (lambda: FeatureTerms(name="age", scale=math.inf), r"data\.features\[age\]\.scale = inf"),
        (lambda: data(test_fraction=0.04), r"data\.test_fraction = 0\.04 is outside 0\.05\.\.0\.5"),
        (lambda: data(test_fraction=0.51), r"data\.test_fraction"),
        (lambda: data(features=()), r"data\.features is empty"),
        (lambda: data(features=(AGE, AGE)), r"data\.features: a column is named twice"),
        (lambda: data(label="age"), r"data\.features: a column is named twice, or is also the label"),
        (lambda: ModelTerms(kind="transformer"), r"model\.kind = 'transformer' is not one of logistic_regression, mlp"),
        (lambda: ModelTerms(kind="mlp"), r"model\.hidden = \[\] does not fit"),
        (lambda: ModelTerms(hidden=(8,)), r"model\.hidden = \[8\] does not fit"),
        (lambda: ModelTerms(kind="mlp", hidden=(0,)), r"model\.hidden = 0"),
        (lambda: ModelTerms(kind="mlp", hidden=(8, (1 << 20) + 1)), r"model\.hidden = 1048577"),
        (lambda: TrainingTerms(rounds=0), r"strategy\.rounds = 0 is outside 1\.\.10000"),
        (lambda: TrainingTerms(rounds=10_001), r"strategy\.rounds"),
        (lambda: TrainingTerms(local_epochs=0), r"strategy\.local_epochs"),
        (lambda: TrainingTerms(batch_size=0), r"strategy\.batch_size"),
        (lambda: TrainingTerms(learning_rate=0.0), r"strategy\.learning_rate"),
        (lambda: TrainingTerms(learning_rate=math.nan), r"strategy\.learning_rate = nan"),
        (lambda: TrainingTerms(weight_decay=-0.1), r"strategy\.weight_decay"),
        (lambda: TrainingTerms(proximal=math.inf), r"strategy\.proximal"),
        (lambda: TrainingTerms(clip=0.0), r"strategy\.clip"),
        (lambda: TrainingTerms(seed=1 << 32), r"strategy\.seed"),
        (lambda: TrainingTerms(seed=-1), r"strategy\.seed"),
        (lambda: CryptoTerms(value_bits=7), r"crypto\.value_bits = 7 is outside 8\.\.32"),
        (lambda: CryptoTerms(value_bits=33), r"crypto\.value_bits"),
        (lambda: CryptoTerms(security_bits=192), r"crypto\.security_bits"),
        (lambda: CohortTerms(tolerated_colluders=-1), r"federation\.cohort\.tolerated_colluders"),
        (lambda: CohortTerms(smallest_cohort=1), r"federation\.cohort\.smallest_cohort = 1 is outside 2\.\.128"),
        (lambda: CohortTerms(smallest_cohort=129), r"federation\.cohort\.smallest_cohort"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(make, key):
    with pytest.raises(ConfigurationError, match=key):
        make()


@pytest.mark.parametrize("colluders", [0, 1, 2, 5])
def test_the_smallest_cohort_leaves_two_honest_sites_beside_the_colluders(colluders):
    CohortTerms(tolerated_colluders=colluders, smallest_cohort=colluders + 2)
    if colluders:
        with pytest.raises(ConfigurationError, match="at least tolerated_colluders"):
            CohortTerms(tolerated_colluders=colluders, smallest_cohort=colluders + 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400), 0.999, 2.001])
def test_a_range_refuses_everything_outside_whatever_its_type(value):
    with pytest.raises(ConfigurationError, match=r"is outside 1\.\.2"):
        check_range("key", value, 1, 2)


@pytest.mark.parametrize("value", [1, 1.5, 2])
def test_a_range_includes_its_ends(value):
    check_range("key", value, 1, 2)


def test_a_choice_is_one_of_the_list():
    check_choice("key", "a", ("a", "b"))
    with pytest.raises(ConfigurationError, match="key = 'c' is not one of a, b"):
        check_choice("key", "c", ("a", "b"))


def test_lists_from_a_configuration_become_tuples():
    assert data(features=[AGE]) == data()
    assert ModelTerms(kind="mlp", hidden=[8, 4]).hidden == (8, 4)


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (ModelTerms(), {"layers.0.weight": (1, 30), "layers.0.bias": (1,)}),
        (
            ModelTerms(kind="mlp", hidden=(8, 4)),
            {
                "layers.0.weight": (8, 30),
                "layers.0.bias": (8,),
                "layers.1.weight": (4, 8),
                "layers.1.bias": (4,),
                "layers.2.weight": (1, 4),
                "layers.2.bias": (1,),
            },
        ),
    ],
)
def test_tensor_shapes_follow_the_architecture_in_packing_order(model, shapes):
    assert list(model.tensor_shapes(30).items()) == list(shapes.items())
