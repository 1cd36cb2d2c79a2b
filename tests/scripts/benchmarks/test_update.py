from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import ResidualError
from scripts.benchmarks.federation import BenchFederation
from scripts.benchmarks.update import SIZES, STEPS, Measurement, _measure_ours, update


def test_the_result_file_has_both_sides_and_their_ratio(tmp_path: Path) -> None:
    file = tmp_path / "update.json"
    update(values=5000, sites=3, value_bits=21, repeats=2, json_file=file)
    result = json.loads(file.read_text())

    for key in (*STEPS, *SIZES):
        assert result["ratio"][key] == pytest.approx(result["ckksvector"][key] / result["ours"][key])
    assert {"mask_seconds", "tag_seconds"} <= set(result["ours"])
    assert 4998 <= result["values"] <= 5000
    assert result["crypto"]["modulus_bits"] == 32


@pytest.mark.parametrize(("value_bits", "residue_bytes"), [(13, 3), (21, 4), (29, 5)])
def test_bytes_per_value_follow_from_the_prime(value_bits: int, residue_bytes: int) -> None:
    federation = BenchFederation(40_960, 3, value_bits)
    packed = federation.pack(np.zeros(federation.plan.values))
    sealed = federation.seal(packed, 0)

    assert residue_bytes < len(sealed) / federation.plan.values < residue_bytes + 0.1


def test_a_wrong_sum_is_not_timed_as_if_it_were_right(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = BenchFederation(3000, 3, 21)
    values = np.full(federation.parameters, 0.5)
    others = [federation.seal(federation.pack(values), site) for site in (1, 2)]
    monkeypatch.setattr(federation, "release", lambda aggregate: np.zeros(federation.plan.shape, dtype=np.int64))

    with pytest.raises(ResidualError):
        _measure_ours(federation, values, others, Measurement())
