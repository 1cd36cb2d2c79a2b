"""A starting model has one encoding, and says under every standardisation what it said under its own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hostile import hostile_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.learning.evaluation import score
from clients.learning.starting_model import ModelPurpose, StartingModel, starting_model_bytes
from clients.learning.statistics import Standardisation
from clients.secrets.secret import SecretBytes
from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms
from protocol.errors import ConfigurationError, LengthError, MalformedError, ProtocolError, ValueRefusedError
from protocol.terms import ModelTerms, Terms

DATA = DataTerms(
    name="ward",
    label=LabelTerms(name="ill"),
    columns=(
        ColumnTerms(name="a", centre=0, scale=1),
        ColumnTerms(name="b", centre=0, scale=1),
        ColumnTerms(name="c", kind="category", categories=("x", "y"), reference="x"),
    ),
)
TERMS = Terms(data=DATA)
PURPOSE = ModelPurpose.of(TERMS)
P, OTHER_P = SecretBytes(bytes(32)), SecretBytes(bytes(31) + b"\1")
MODEL = StartingModel(
    purpose=PURPOSE,
    mean=np.array([50.0, 0.1, 0.3]),
    deviation=np.array([12.0, 0.02, 0.45]),
    values=np.array([0.7, -1.3, 0.2, -0.4]),
)
UNDER = Standardisation(mean=np.array([61.0, 0.13, 0.0]), deviation=np.array([9.0, 0.03, math.inf]), records=40)
PATIENTS = np.random.default_rng(3).normal(size=(20, 3)) * [10, 0.02, 0.4] + [55, 0.1, 0.3]


def mlp_terms(*personal):
    return replace(TERMS, model=ModelTerms(kind="mlp", hidden=(4,), personal=personal))


def logits(model, standardisation, values):
    """Return what a logistic regression says of patients, a patient at a time."""
    *weights, bias = values.tolist()
    return [
        math.fsum([bias, *(w * (x - m) / d for w, x, m, d in zip(weights, row, *standardisation, strict=True))])
        for row in PATIENTS.tolist()
    ]


def test_the_encoding_and_what_an_agreement_says_of_it_are_fixed_for_ever():
    assert MODEL.to_bytes().startswith(b'CWM1o\0\0\0{"activation":"","hidden":[],"inputs":["a","b","c=y"],"kind":"log')
    assert MODEL.digest(P) == "2dfe89493c08211c2df3b9f2642cdf24ec36fc028d50e96044ac2a8397fc6372"


def test_equal_models_are_equal_bytes_of_the_length_that_the_terms_tell():
    data = MODEL.to_bytes()

    again = StartingModel.from_bytes(data, TERMS)

    assert again.to_bytes() == data
    assert again.digest(P) == MODEL.digest(P)
    assert len(data) == starting_model_bytes(TERMS)


@pytest.mark.parametrize("name", ["mean", "deviation", "values"])
def test_one_bit_of_one_value_changes_what_the_agreement_says(name):
    array = getattr(MODEL, name).copy()
    array[1] = math.nextafter(array[1], 100)

    assert replace(MODEL, **{name: array}).digest(P) != MODEL.digest(P)


def test_who_lacks_the_consortium_secret_cannot_check_a_guess():
    assert MODEL.digest(OTHER_P) != MODEL.digest(P)


@pytest.mark.parametrize("off", [-8, -1, 1, 8, 1 << 20])
def test_another_length_is_refused(off):
    data = MODEL.to_bytes()

    with pytest.raises(LengthError):
        StartingModel.from_bytes(data[:off] if off < 0 else data + bytes(off), TERMS)


def test_a_model_for_something_else_is_refused():
    renamed = replace(DATA, label=LabelTerms(name="dead"))  # of the same length

    with pytest.raises(LengthError):
        StartingModel.from_bytes(MODEL.to_bytes(), replace(TERMS, data=renamed))
    with pytest.raises(MalformedError, match="purpose"):
        StartingModel.from_bytes(MODEL.to_bytes(), replace(TERMS, data=replace(DATA, label=LabelTerms(name="bad"))))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", math.nan),
        ("mean", math.inf),
        ("deviation", 0.0),
        ("deviation", -1.0),
        ("deviation", math.nan),
        ("values", math.nan),
        ("values", -math.inf),
    ],
)
def test_values_that_no_model_has_are_refused(name, value):
    array = getattr(MODEL, name).copy()
    array[0] = value
    data = MODEL.to_bytes().replace(getattr(MODEL, name).tobytes(), array.tobytes())

    assert data != MODEL.to_bytes()
    with pytest.raises(MalformedError, match="finite values"):
        StartingModel.from_bytes(data, TERMS)


def test_other_shapes_are_refused():
    for name in ("mean", "deviation", "values"):
        with pytest.raises(MalformedError, match="shapes"):
            replace(MODEL, **{name: getattr(MODEL, name)[1:]})


@settings(max_examples=200)
@given(hostile_bytes(MODEL.to_bytes()))
def test_hostile_bytes_raise_nothing_but_a_refusal(data):
    try:
        model = StartingModel.from_bytes(data, TERMS)
    except ProtocolError:
        return
    assert model.to_bytes() == data


@pytest.mark.parametrize(
    ("terms", "difference"),
    [
        (
            replace(TERMS, data=replace(DATA, columns=(*DATA.columns[:2], ColumnTerms(name="d", centre=0, scale=1)))),
            "it lacks d, and has besides c=y",
        ),
        (replace(TERMS, data=replace(DATA, columns=DATA.columns[::-1])), "it lacks none, and has besides none"),
        (replace(TERMS, data=replace(DATA, label=LabelTerms(name="dead"))), "label = 'ill', the agreement 'dead'"),
        (mlp_terms(), "kind = 'logistic_regression', the agreement 'mlp'"),
        (
            replace(TERMS, model=ModelTerms(personal=("output.bias",))),
            r"personal = \(\), the agreement \('output.bias',\)",
        ),
    ],
)
def test_what_a_model_does_not_serve_is_told_by_difference(terms, difference):
    with pytest.raises(ConfigurationError, match=difference):
        PURPOSE.check_same(ModelPurpose.of(terms))


def test_a_new_hospital_s_codes_ranges_and_rules_do_not_change_what_a_model_is_for():
    label = LabelTerms(name="ill", negative=("0", "no"), positive=("1", "yes"), meaning="is ill")
    columns = (replace(DATA.columns[0], centre=1.0, missing=("?",)), *DATA.columns[1:])
    data = replace(DATA, name="wards", label=label, columns=columns, smallest_count=20)

    PURPOSE.check_same(ModelPurpose.of(replace(TERMS, data=data)))


def test_personal_weights_of_the_inputs_cannot_be_started_from():
    terms = mlp_terms("hidden.0.weight")

    with pytest.raises(ConfigurationError, match="weights of the inputs are personal"):
        StartingModel(purpose=ModelPurpose.of(terms), mean=np.zeros(3), deviation=np.ones(3), values=np.zeros(9))


def test_under_its_own_standardisation_a_model_stays_as_it_is():
    own = Standardisation(mean=MODEL.mean, deviation=MODEL.deviation, records=1)

    assert MODEL.under(own, MODEL.values).tobytes() == MODEL.values.tobytes()


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_it_says_of_every_patient_what_it_said_before(seed):
    rng = np.random.default_rng(seed)
    model = replace(MODEL, values=rng.normal(size=4))
    mean, deviation = MODEL.mean + rng.normal(size=3), MODEL.deviation * rng.uniform(0.2, 5, size=3)

    moved = model.under(Standardisation(mean=mean, deviation=deviation, records=1), model.values)

    np.testing.assert_allclose(
        logits(model, (mean, deviation), moved), logits(model, (model.mean, model.deviation), model.values), atol=1e-11
    )


def test_an_mlp_s_first_layer_is_moved_and_nothing_else():
    terms = mlp_terms()
    values = np.random.default_rng(1).normal(size=21)
    model = replace(MODEL, purpose=ModelPurpose.of(terms), values=values)
    near = Standardisation(mean=MODEL.mean + 0.01, deviation=MODEL.deviation * 1.25, records=1)

    moved = model.under(near, values)

    own = Standardisation(mean=MODEL.mean, deviation=MODEL.deviation, records=1)
    assert moved[16:].tobytes() == values[16:].tobytes()
    assert (moved[:16] != values[:16]).all()
    before, after = (score(terms.model, v, s.apply(PATIENTS)) for v, s in ((values, own), (moved, near)))
    np.testing.assert_allclose(after, before, atol=1e-6)  # features are rounded to float32


@pytest.mark.parametrize("unused", ["by the earlier run", "by this run", "by both"])
def test_an_input_that_one_of_the_two_does_not_use_starts_at_weight_0(unused):
    hole = np.array([1.0, math.inf, 1.0])
    model = replace(MODEL, deviation=MODEL.deviation * hole) if unused != "by this run" else MODEL
    new = MODEL.deviation * hole if unused != "by the earlier run" else MODEL.deviation
    mean = MODEL.mean + 1

    moved = model.under(Standardisation(mean=mean, deviation=new, records=1), model.values)

    used = replace(MODEL, values=MODEL.values * [1, 0, 1, 1])
    assert moved[1] == 0
    assert (
        moved.tobytes()
        == (used.under(Standardisation(mean=mean, deviation=MODEL.deviation, records=1), used.values) + 0.0).tobytes()
    )


def test_the_shift_is_added_up_one_input_after_the_other():
    columns = tuple(ColumnTerms(name=f"v{number:03}", centre=0, scale=1) for number in range(256))
    terms = Terms(data=replace(DATA, columns=columns))
    rng = np.random.default_rng(5)
    model = StartingModel(
        purpose=ModelPurpose.of(terms), mean=np.zeros(256), deviation=np.ones(256), values=rng.normal(size=257)
    )
    mean = rng.normal(size=256)

    moved = model.under(Standardisation(mean=mean, deviation=np.ones(256), records=1), model.values)

    shift = 0.0
    for weight, off in zip(model.values.tolist(), mean.tolist(), strict=False):
        shift += weight * off
    assert moved[-1] == model.values[-1] + shift
    assert shift != float(np.sum(model.values[:-1] * mean))  # what another order gives


def test_the_moved_bits_are_fixed_for_ever():
    assert (
        MODEL.under(UNDER, MODEL.values).tobytes().hex()
        == "cccccccccccce03f343333333333ffbf0000000000000000565555555555fbbf"
    )


def test_a_model_that_overflows_is_refused():
    model = replace(MODEL, values=np.array([1e308, 0, 0, 0]))
    far = replace(UNDER, deviation=MODEL.deviation * 1e6)

    with pytest.raises(ValueRefusedError, match="starting model: NaN or infinite"):
        model.under(far, model.values)


def test_repr_shows_no_value():
    assert "0.7" not in repr(MODEL)
    assert "12.0" not in repr(MODEL)
