"""Counts of few patients stay at the site, and a site of few patients stays out of the run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.data.small_numbers import check_floors, is_small, without_small_cells
from clients.data.table import Table
from clients.run.membership import TABLE
from clients.simulation import check_hospitals
from conf import FederationConfig
from protocol.envelope import Request, pack_list
from protocol.errors import DataError
from protocol.privacy_terms import PrivacyTerms

TERMS = PrivacyTerms(smallest_records=10, smallest_events=5)


def table(positives, negatives):
    labels = np.repeat(np.array([1, 0], dtype=np.int8), [positives, negatives])
    return Table(features=np.zeros((len(labels), 1)), labels=labels)


@given(st.lists(st.integers(0, 20)), st.integers(1, 8))
def test_no_count_of_few_patients_is_left_and_the_others_are_as_they_were(counts, smallest):
    kept = without_small_cells(np.array(counts, dtype=np.int64), smallest)

    assert kept.tolist() == [count if count >= smallest else 0 for count in counts]
    assert not is_small(kept, smallest).any()


@pytest.mark.parametrize(("positives", "negatives"), [(5, 5), (0, 10), (10, 0), (5, 90)])
def test_a_table_at_the_floors_takes_part(positives, negatives):
    check_floors(table(positives, negatives), TERMS, "ward")


@pytest.mark.parametrize(
    ("positives", "negatives", "floor"),
    [
        (5, 4, "records = 10 patients"),
        (0, 9, "records = 10 patients"),
        (4, 20, "events = 5 patients of one outcome"),
        (20, 1, "events = 5 patients of one outcome"),
    ],
)
def test_a_table_below_a_floor_is_refused_by_the_floor_alone(positives, negatives, floor):
    with pytest.raises(DataError) as refusal:
        check_floors(table(positives, negatives), TERMS, "ward")

    assert str(refusal.value) == f"ward: fewer than privacy.smallest_{floor}"


@pytest.mark.parametrize(("few", "floor"), [(9, "smallest_records"), (13, "smallest_events")])
def test_a_site_whose_table_has_too_few_patients_prepares_no_round(opened, few, floor):
    path = opened.vault(2).path(TABLE)
    header, *rows = path.read_text().splitlines(keepends=True)
    ill = [row for row in rows if row.strip().endswith("1")][:3]
    well = [row for row in rows if row.strip().endswith("0")][: few - 3]
    path.write_text("".join([header, *ill, *well]))

    with pytest.raises(DataError, match=f"fewer than privacy.{floor}"):
        opened.prepare(2, 0)
    with pytest.raises(DataError, match=floor):
        opened.ask(2, Request.CLOSE, history=pack_list([]))
    opened.prepare(1, 0)


def test_the_run_goes_on_without_a_site_of_few_patients(run, founded):
    path = founded.vault(2).path(TABLE)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))

    run(founded)

    events = (founded.directory / "provider" / "events.jsonl").read_text()
    assert '"cohort":["hospital-1","hospital-2","hospital-4"]' in events
    assert '"hospital-3","hospital-4"],"left_out"' not in events


def test_hospitals_of_few_patients_are_named_before_a_simulation_starts(founded_once):
    dealt = replace(founded_once.experiment, federation=FederationConfig(sites=60, partition="iid"))
    experiment = replace(dealt, privacy=PrivacyTerms(smallest_records=10, smallest_events=1))
    assert len(check_hospitals(replace(dealt, privacy=PrivacyTerms(smallest_records=9, smallest_events=1)))) == 60

    with pytest.raises(DataError, match=r"^hospital-\d\d: fewer than privacy\.smallest_records = 10 patients$"):
        check_hospitals(experiment)
