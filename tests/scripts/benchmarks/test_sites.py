from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import ResidualError
from scripts.benchmarks.federation import BenchFederation
from scripts.benchmarks.sites import Comparison, Figures, Runner, sites


def comparison(seeded: tuple[float, float, float], expanded: tuple[float, float, float]) -> Comparison:
    """Compare forms by seconds to seal, seconds to open and bytes per value, of a million values."""
    forms = [
        Figures(seal_seconds=seal, provider_seconds=1.0, open_seconds=opened, down_bytes_per_value=down)
        for seal, opened, down in (seeded, expanded)
    ]
    return Comparison(sites=4, values=1_000_000, modulus_bits=32, seeded=forms[0], expanded=forms[1])


def test_the_result_file_has_both_forms_for_each_number_of_sites(tmp_path: Path) -> None:
    file = tmp_path / "sites.json"
    sites(values=3000, cohorts=[3, 5], value_bits=21, repeats=2, json_file=file)
    result = json.loads(file.read_text())

    assert [entry["sites"] for entry in result] == [3, 5]
    for entry in result:
        assert 2990 <= entry["values"] <= 3000
        assert entry["modulus_bits"] == 32
        assert set(entry["seeded"]) == set(entry["expanded"])
        # N = 4096 for so few values: a row of 4-byte words, or two, of which not all are in use
        row = 4 * 4096 / entry["values"]
        assert row < entry["seeded"]["down_bytes_per_value"] < 1.2 * row
        assert 2 * row < entry["expanded"]["down_bytes_per_value"] < 2.2 * row
        assert "pays_from_mbit_per_second" in entry


@pytest.mark.parametrize(
    ("seeded", "expanded", "pays_from"),
    [
        ((0.5, 2.0, 4.5), (1.0, 1.0, 8.5), 64.0),  # 4 MB more, half a second less
        ((0.5, 2.0, 9.0), (0.5, 1.0, 8.5), 0.0),  # fewer bytes and less time
        ((0.5, 1.0, 4.5), (0.6, 1.0, 8.5), None),  # more of both
    ],
)
def test_expanding_pays_where_the_line_carries_more_bytes_in_less_time_than_is_saved(
    seeded: tuple[float, float, float], expanded: tuple[float, float, float], pays_from: float | None
) -> None:
    assert comparison(seeded, expanded).pays_from_mbit_per_second == pays_from


def test_a_wrong_sum_is_not_timed_as_if_it_were_right(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = BenchFederation(3000, 3, 21, largest_seeded_cohort=1)
    runner = Runner(federation, federation.pack(np.full(federation.parameters, 0.5)))
    for site in range(3):
        runner.seal(site)
    runner.sum_up()
    monkeypatch.setattr(federation, "release", lambda aggregate: np.zeros(federation.plan.shape, dtype=np.int64))

    with pytest.raises(ResidualError):
        runner.sum_up()
