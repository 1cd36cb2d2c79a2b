from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
from consortium import Consortium
from hypothesis import given
from hypothesis import strategies as st

import protocol.data_terms
from conf import compose
from protocol.agreement import Agreement
from protocol.data_terms import ColumnTerms, DataTerms, InputTerms, LabelTerms
from protocol.errors import ConfigurationError

AGE = ColumnTerms(name="age", centre=50.0, scale=20.0)
PAIN = ColumnTerms(name="pain", kind="category", categories=("1", "2", "3"), reference="2")
HEART_DISEASE = compose(["experiment=heart_disease"]).terms


def number(**changes):
    return ColumnTerms(**({"name": "age", "centre": 50.0, "scale": 20.0} | changes))


def category(**changes):
    return ColumnTerms(**({"name": "pain", "kind": "category", "categories": ("1", "2")} | changes))


def data(**changes):
    return DataTerms(**({"name": "table", "columns": (AGE, PAIN)} | changes))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: number(kind="date"), r"data\.columns\[age\]\.kind = 'date' is not one of number, category, ignored"),
        (lambda: number(centre=math.nan), r"data\.columns\[age\]\.centre = nan"),
        (lambda: number(centre=-2e12), r"data\.columns\[age\]\.centre"),
        (lambda: number(scale=0.0), r"data\.columns\[age\]\.scale = 0\.0 is outside"),
        (lambda: number(scale=-1.0), r"data\.columns\[age\]\.scale"),
        (lambda: number(scale=math.inf), r"data\.columns\[age\]\.scale = inf"),
        (lambda: number(minimum=math.nan), r"data\.columns\[age\]\.minimum = nan"),
        (lambda: number(minimum=-math.inf), r"data\.columns\[age\]\.minimum = -inf"),
        (lambda: number(maximum=math.inf), r"data\.columns\[age\]\.maximum = inf"),
        (lambda: number(minimum=2, maximum=1), r"data\.columns\[age\]\.maximum = 1 is outside 2"),
        (lambda: number(categories=("1",)), r"data\.columns\[age\]: categories are named exactly for columns of kind"),
        (
            lambda: ColumnTerms(name="age", kind="ignored", categories=("1",)),
            r"data\.columns\[age\]: categories are named exactly",
        ),
        (lambda: number(reference="1"), r"data\.columns\[age\]\.reference = '1' is not one of its categories"),
        (lambda: category(categories=()), r"data\.columns\[pain\]: categories are named exactly"),
        (
            lambda: category(categories=("1", "1")),
            r"data\.columns\[pain\]\.categories and \.missing: a code is empty, or two mean the same",
        ),
        (
            lambda: category(categories=("1", "")),
            r"data\.columns\[pain\]\.categories and \.missing: a code is empty, or two mean the same",
        ),
        (lambda: category(reference="3"), r"data\.columns\[pain\]\.reference = '3' is not one of its categories"),
        (lambda: category(categories=("1",), reference="1"), r"data\.columns\[pain\]: .*would have no input"),
        (lambda: LabelTerms(positive_above=math.nan), r"data\.label\.positive_above = nan"),
        (lambda: LabelTerms(positive_above=math.inf), r"data\.label\.positive_above = inf"),
        (lambda: LabelTerms(negative=()), r"data\.label: both outcomes need codes"),
        (lambda: LabelTerms(positive=()), r"data\.label: both outcomes need codes"),
        (lambda: LabelTerms(positive=("1", "1")), r"data\.label\.negative and \.positive: .*two mean the same"),
        (lambda: LabelTerms(positive=("0",)), r"data\.label\.negative and \.positive: .*two mean the same"),
        (lambda: LabelTerms(negative=("",)), r"data\.label\.negative and \.positive: a code is empty"),
        (lambda: data(smallest_count=0), r"data\.smallest_count = 0 is outside 1\.\."),
        (lambda: data(folds=1), r"data\.folds = 1 is outside 2\.\.20"),
        (lambda: data(folds=21), r"data\.folds = 21"),
        (lambda: data(fold=-1), r"data\.fold = -1 is outside 0\.\.3"),
        (lambda: data(fold=4), r"data\.fold = 4 is outside 0\.\.3"),
        (lambda: data(folds=20, fold=20), r"data\.fold = 20 is outside 0\.\.19"),
        (lambda: data(columns=()), r"number of data\.columns = 0 is outside 1\.\.256"),
        (lambda: data(columns=tuple(number(name=f"c{i}") for i in range(257))), r"number of data\.columns = 257 is"),
        (lambda: number(centre=None), r"data\.columns\[age\]: a number needs centre and scale"),
        (lambda: number(scale=None), r"data\.columns\[age\]: a number needs centre and scale"),
        (lambda: category(centre=1.0), r"data\.columns\[pain\]: only a column of kind number has centre and scale"),
        (lambda: category(categories=("1", "1.0", "2")), r"data\.columns\[pain\]\.categories and .*two mean the same"),
        (lambda: category(categories=("no ", " no")), r"data\.columns\[pain\]\.categories and .*two mean the same"),
        (lambda: category(missing=("2.0",)), r"data\.columns\[pain\]\.categories and .*two mean the same"),
        (lambda: LabelTerms(negative=("1",), positive=("1.0",)), r"data\.label\.negative .*two mean the same"),
        (lambda: data(missing=("1",)), r"data\.missing and data\.columns\[pain\]\.categories: .*two mean the same"),
        (lambda: data(missing=("0",)), r"data\.missing and data\.label: .*two mean the same"),
        (
            lambda: data(columns=(number(name="pain=1"), PAIN)),
            r"data\.columns: a column is named like a category of another",
        ),
        (lambda: data(columns=(ColumnTerms(name="note", kind="ignored"),)), r"data\.columns: no column is an input"),
        (lambda: data(columns=(AGE, AGE)), r"data\.columns: a column is named twice"),
        (lambda: data(label=LabelTerms(name="age")), r"data\.columns: .*or is also the label"),
    ],
)
def test_a_schema_that_cannot_be_is_refused_by_its_key(make, complaint):
    with pytest.raises(ConfigurationError, match=f"^{complaint}"):
        make()


def test_a_number_is_one_input_with_its_public_constants():
    assert AGE.inputs == (InputTerms(name="age", column="age", centre=50.0, scale=20.0),)


def test_a_category_is_one_input_per_code_but_the_reference():
    assert PAIN.inputs == (
        InputTerms(name="pain=1", column="pain", category="1"),
        InputTerms(name="pain=3", column="pain", category="3"),
    )
    assert [given.name for given in replace(PAIN, reference="").inputs] == ["pain=1", "pain=2", "pain=3"]


def test_inputs_are_in_the_order_of_the_columns_and_none_is_made_of_an_ignored_one():
    terms = data(columns=(PAIN, ColumnTerms(name="ward", kind="ignored"), AGE))

    assert [given.name for given in terms.inputs] == ["pain=1", "pain=3", "age"]
    assert {given.column for given in terms.inputs} == {"pain", "age"}


def test_heart_disease_has_the_inputs_that_a_cardiologist_would_name():
    assert [given.name for given in HEART_DISEASE.data.inputs] == [
        "age", "sex=1", "cp=1", "cp=2", "cp=3", "trestbps", "chol", "fbs=1", "restecg=1", "restecg=2", "thalach",
        "exang=1", "oldpeak", "slope=1", "slope=2", "slope=3", "ca", "thal=3", "thal=6", "thal=7",
    ]  # fmt: skip


def test_lists_and_whole_numbers_of_a_configuration_become_tuples_and_floats():
    listed = data(
        columns=[
            ColumnTerms(name="age", centre=50, scale=20, minimum=0, maximum=120, missing=["999"]),
            ColumnTerms(name="pain", kind="category", categories=["1", "2", "3"], reference="2"),
        ],
        label=LabelTerms(negative=["0"], positive=["1", "2"], positive_above=1),
        missing=["?"],
    )
    written_out = data(
        columns=(
            ColumnTerms(name="age", centre=50.0, scale=20.0, minimum=0.0, maximum=120.0, missing=("999",)),
            PAIN,
        ),
        label=LabelTerms(negative=("0",), positive=("1", "2"), positive_above=1.0),
        missing=("?",),
    )

    assert listed == written_out
    assert agreement_on(listed).to_bytes() == agreement_on(written_out).to_bytes()
    assert isinstance(listed.columns[0].maximum, float)
    assert isinstance(listed.label.positive_above, float)


def agreement_on(terms):
    agreed = Consortium().agreement
    return replace(agreed, terms=replace(agreed.terms, data=terms))


@pytest.mark.parametrize(
    "changes",
    [
        {"header": False},
        {"missing": ("?", "-9")},
        {"smallest_count": 11},
        {"folds": 5},
        {"fold": 1},
        {"label": LabelTerms(positive=("1", "2"))},
        {"label": LabelTerms(positive_above=50.0)},
        {"columns": (AGE, replace(PAIN, reference=""))},
        {"columns": (AGE, replace(PAIN, missing=("9",)))},
        {"columns": (replace(AGE, maximum=120.0), PAIN)},
        {"columns": (PAIN, AGE)},
    ],
)
def test_whatever_changes_what_a_site_reads_makes_another_agreement(changes):
    assert agreement_on(data(**changes)).digest != agreement_on(data()).digest


def test_an_agreement_on_heart_disease_can_be_read_back():
    agreed = replace(Consortium().agreement, terms=HEART_DISEASE)

    read_back = Agreement.from_bytes(agreed.to_bytes())

    assert read_back == agreed
    assert read_back.digest == agreed.digest
    assert read_back.terms.data.inputs == HEART_DISEASE.data.inputs
    assert read_back.terms.model.personal == ("output.bias",)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
texts = names.map(lambda text: f"x{text.strip()}")  # no numbers, which are equal in more than one spelling
codes = st.lists(texts, min_size=2, max_size=4, unique=True).map(tuple)


@given(
    label=st.builds(lambda pair: LabelTerms(name="outcome", negative=pair[:1], positive=pair[1:]), codes),
    categories=codes,
    limits=st.tuples(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12)).map(sorted),
    folds=st.integers(2, 20),
)
def test_every_valid_schema_survives_the_agreement(label, categories, limits, folds):
    terms = data(
        columns=(
            ColumnTerms(name="a", centre=0, scale=1, minimum=limits[0], maximum=limits[1]),
            ColumnTerms(name="b", kind="category", categories=categories, reference=categories[0]),
            ColumnTerms(name="c", kind="ignored"),
        ),
        label=label,
        folds=folds,
        fold=folds - 1,
    )

    agreed = agreement_on(terms)

    assert asdict(Agreement.from_bytes(agreed.to_bytes()).terms.data) == asdict(terms)


def test_codes_are_read_once_however_many_columns_there_are(monkeypatch):
    read = []
    number_of = protocol.data_terms.number_of
    monkeypatch.setattr(protocol.data_terms, "number_of", lambda code: read.append(code) or number_of(code))
    columns = tuple(category(name=f"c{number}") for number in range(100))

    data(columns=columns, missing=tuple(f"missing-{number}" for number in range(100)))

    assert len(read) < 1000


def test_schemas_that_somebody_made_up_are_not_kept():
    for number in range(100):
        assert data(columns=(category(name=f"c{number}"),)).inputs

    assert protocol.data_terms._inputs.cache_info().currsize < 10
