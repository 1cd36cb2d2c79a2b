from __future__ import annotations

import math
from dataclasses import replace

import pytest

from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms
from protocol.errors import ConfigurationError
from protocol.privacy_terms import PrivacyTerms
from protocol.terms import OPTIMISERS, CohortTerms, CryptoTerms, ModelTerms, OptimiserTerms, Terms, TrainingTerms

DATA = DataTerms(name="q", label=LabelTerms(name="ill"), columns=(ColumnTerms(name="age", centre=55.0, scale=10.0),))
MLP = {"kind": "mlp", "hidden": (8, 4)}


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ModelTerms(kind="transformer"), r"model\.kind = 'transformer' is not one of logistic_regression, mlp"),
        (lambda: ModelTerms(kind="mlp"), r"model\.hidden = \[\] does not fit"),
        (lambda: ModelTerms(hidden=(8,)), r"model\.hidden = \[8\] does not fit"),
        (lambda: ModelTerms(activation="relu"), r"model\.activation = 'relu', but the model has no hidden layer"),
        (lambda: ModelTerms(activation="quadratic"), r"model\.activation = 'quadratic', but the model has no hidden"),
        (lambda: ModelTerms(**MLP, activation="tanh"), r"model\.activation = 'tanh' is not one of relu, quadratic"),
        (lambda: ModelTerms(**MLP, activation="quadratic"), r"model\.hidden = \[8, 4\].*takes one hidden layer"),
        (lambda: ModelTerms(kind="mlp", hidden=(0,)), r"model\.hidden = 0"),
        (lambda: ModelTerms(kind="mlp", hidden=(8, (1 << 20) + 1)), r"model\.hidden = 1048577"),
        (
            lambda: ModelTerms(personal=("bias",)),
            r"model\.personal = 'bias' is not one of output\.weight, output\.bias",
        ),
        (lambda: ModelTerms(personal=("hidden.0.bias",)), r"model\.personal = 'hidden\.0\.bias' is not one of output"),
        (lambda: ModelTerms(**MLP, personal=("hidden.2.bias",)), r"model\.personal = 'hidden\.2\.bias'"),
        (lambda: ModelTerms(personal=("output.bias",) * 2), r"model\.personal names a tensor twice"),
        (lambda: ModelTerms(personal=("output.weight", "output.bias")), r"model\.personal .*nothing to be shared"),
        (lambda: OptimiserTerms(kind="sgd"), r"strategy\.optimiser\.kind = 'sgd' is not one of fedavg, fedavgm"),
        (lambda: OptimiserTerms(learning_rate=0.0), r"strategy\.optimiser\.learning_rate = 0\.0"),
        (lambda: OptimiserTerms(learning_rate=math.nan), r"strategy\.optimiser\.learning_rate = nan"),
        (lambda: OptimiserTerms(learning_rate=1001), r"strategy\.optimiser\.learning_rate = 1001"),
        (lambda: OptimiserTerms(momentum=1.0), r"strategy\.optimiser\.momentum = 1\.0 is outside 0\.\.0\.9999"),
        (lambda: OptimiserTerms(momentum=-0.1), r"strategy\.optimiser\.momentum"),
        (lambda: OptimiserTerms(beta_1=1.0), r"strategy\.optimiser\.beta_1"),
        (lambda: OptimiserTerms(beta_2=1.0), r"strategy\.optimiser\.beta_2"),
        (lambda: OptimiserTerms(beta_2=math.nan), r"strategy\.optimiser\.beta_2"),
        (lambda: OptimiserTerms(tau=0.0), r"strategy\.optimiser\.tau"),
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
        (lambda: CryptoTerms(largest_seeded_cohort=0), r"crypto\.largest_seeded_cohort = 0 is outside 1\.\.128"),
        (lambda: CryptoTerms(largest_seeded_cohort=129), r"crypto\.largest_seeded_cohort"),
        (lambda: PrivacyTerms(smallest_cell=0), r"privacy\.smallest_cell = 0 is outside 1\.\."),
        (lambda: PrivacyTerms(smallest_records=1), r"privacy\.smallest_records = 1 is outside 2\.\."),
        (lambda: PrivacyTerms(smallest_events=0), r"privacy\.smallest_events = 0 is outside 1\.\."),
        (lambda: PrivacyTerms(noise_multiplier=-1.0), r"privacy\.noise_multiplier = -1\.0 is outside 0\.\."),
        (lambda: PrivacyTerms(noise_multiplier=math.nan), r"privacy\.noise_multiplier = nan"),
        (lambda: PrivacyTerms(clip_norm=0.0), r"privacy\.clip_norm = 0\.0"),
        (lambda: PrivacyTerms(delta=0.0), r"privacy\.delta = 0\.0"),
        (lambda: PrivacyTerms(delta=1.0), r"privacy\.delta = 1\.0"),
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


@pytest.mark.parametrize(("colluders", "cohort", "honest"), [(0, 2, 1), (0, 5, 4), (1, 3, 2), (3, 9, 6)])
def test_every_reader_of_a_sum_knows_its_own_part(colluders, cohort, honest):
    assert CohortTerms(tolerated_colluders=colluders, smallest_cohort=cohort).honest_sites == honest


def test_lists_from_a_configuration_become_tuples():
    assert ModelTerms(kind="mlp", hidden=[8, 4]).hidden == (8, 4)
    assert ModelTerms(personal=["output.bias"]) == ModelTerms(personal=("output.bias",))


def test_an_mlp_s_activation_is_relu_unless_it_is_said_and_has_one_encoding():
    assert ModelTerms(**MLP).activation == "relu"
    assert ModelTerms(**MLP) == ModelTerms(**MLP, activation="relu")
    assert ModelTerms(kind="mlp", hidden=(8,), activation="quadratic").activation == "quadratic"
    assert ModelTerms().activation == ""


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_an_optimiser_keeps_whole_numbers_as_floats(kind):
    terms = OptimiserTerms(kind=kind, learning_rate=1, momentum=0, beta_1=0, beta_2=0, tau=1)

    assert {type(getattr(terms, name)) for name in ("learning_rate", "momentum", "beta_1", "beta_2", "tau")} == {float}


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (ModelTerms(), {"output.weight": (1, 30), "output.bias": (1,)}),
        (
            ModelTerms(kind="mlp", hidden=(8, 4)),
            {
                "hidden.0.weight": (8, 30),
                "hidden.0.bias": (8,),
                "hidden.1.weight": (4, 8),
                "hidden.1.bias": (4,),
                "output.weight": (1, 4),
                "output.bias": (1,),
            },
        ),
    ],
)
def test_tensor_shapes_follow_the_architecture_in_packing_order(model, shapes):
    assert list(model.tensor_shapes(30).items()) == list(shapes.items())


@pytest.mark.parametrize(
    ("model", "shared"),
    [
        (ModelTerms(), ["output.weight", "output.bias"]),
        (ModelTerms(personal=("output.bias",)), ["output.weight"]),
        (ModelTerms(personal=("output.weight",)), ["output.bias"]),
        (
            ModelTerms(**MLP, personal=("output.bias", "output.weight", "hidden.1.bias")),
            ["hidden.0.weight", "hidden.0.bias", "hidden.1.weight"],
        ),
    ],
)
def test_what_is_shared_is_what_is_not_personal_in_packing_order(model, shared):
    shapes = model.shared_shapes(30)

    assert list(shapes) == shared
    assert shapes.items() <= model.tensor_shapes(30).items()


def test_the_digest_is_that_of_all_terms_and_of_nothing_else():
    terms = Terms(data=DATA)

    assert terms.digest == Terms(data=replace(DATA)).digest
    assert len(bytes.fromhex(terms.digest)) == 32
    others = [
        Terms(data=DATA, training=TrainingTerms(rounds=21)),
        Terms(data=DATA, cohort=CohortTerms(smallest_cohort=4)),
        Terms(data=DATA, model=ModelTerms(personal=("output.bias",))),
        Terms(data=replace(DATA, name="other")),
        Terms(data=DATA, model=ModelTerms(kind="mlp", hidden=(8,))),
        Terms(data=DATA, model=ModelTerms(kind="mlp", hidden=(8,), activation="quadratic")),
    ]
    assert len({terms.digest, *(other.digest for other in others)}) == 7
