from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from scripts.events import Outcome, RunStatus
from scripts.simulation.summary import (
    Checks,
    Comparison,
    Crypto,
    Privacy,
    Scores,
    Seconds,
    SiteResult,
    Summary,
    Traffic,
)
from scripts.simulation.summary_table import print_summary

LOCAL = Scores(auc=0.8125, accuracy=0.75, brier=0.2, n=40)
FEDERATED = Scores(auc=0.96875, accuracy=0.9, brier=0.05, n=40)

SUMMARY = Summary(
    outcome=Outcome(status=RunStatus.COMPLETED),
    rounds=20,
    sites=("hospital-01", "hospital-02"),
    model_parameters=12345,
    pooled=Comparison(local=LOCAL, federated=FEDERATED),
    results={
        "hospital-01": SiteResult(
            train_records=90,
            test_records=30,
            scores=Comparison(local=LOCAL, federated=FEDERATED),
            local_everywhere=replace(LOCAL, auc=0.71875),
        ),
        "hospital-02": SiteResult(
            train_records=30,
            test_records=10,
            scores=Comparison(local=replace(LOCAL, auc=None), federated=replace(FEDERATED, auc=None)),
            local_everywhere=replace(LOCAL, auc=0.5),
        ),
    },
    traffic=Traffic(
        up_bytes_per_site_per_round=49_400.4,
        down_bytes_per_site_per_round=2_500_000,
        up_bytes_per_value=4.016,
    ),
    seconds=Seconds(total=83.0, train=12.34, encrypt=0.0124, aggregate=0.5, decrypt=0.9999),
    crypto=Crypto(ring_degree=4096, modulus_bits=32, guard_bits=8, value_bits=23, security_bits=128),
    privacy=None,
    checks=Checks(max_abs_difference_from_plaintext=0.0, sites_bit_identical=True),
)


def printed(summary: Summary, width: int = 200) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        print_summary(summary, console)
    return capture.get()


def test_noise_is_told_with_its_epsilon_and_what_it_leaves_uncompared() -> None:
    checks = Checks(max_abs_difference_from_plaintext=None, sites_bit_identical=True)
    text = printed(replace(SUMMARY, privacy=Privacy(epsilon=1.914, delta=1e-5), checks=checks))

    assert "epsilon 1.91 at delta 1e-05 of the model updates, given the statistics" in text
    assert "not compared with the same run without encryption: noise is drawn anew" in text
    assert "epsilon" not in printed(SUMMARY)


def test_each_site_and_the_shared_model_have_a_row() -> None:
    rows = [line.split() for line in printed(SUMMARY).splitlines()]
    assert ["hospital-01", "90/30", "0.812", "0.969", "0.719", "0.750", "0.200"] in rows
    assert ["hospital-02", "30/10", "-", "-", "0.500", "0.750", "0.200"] in rows
    assert ["alone,", "median", "0.609", "0.750", "0.200"] in rows
    assert ["shared", "model", "120/40", "0.969", "0.900", "0.050"] in rows
    assert "have the same label" in printed(SUMMARY)


def test_sizes_and_times_are_in_units_for_people() -> None:
    text = printed(SUMMARY)
    assert "49.4 kB up, 2.5 MB down; 4.02 bytes per encrypted value" in text
    assert "1 min 23 s in all; per site 12.3 s training, 12 ms encrypting, 1.0 s decrypting; 500 ms adding" in text
    assert "12,345 parameters" in text


def test_checks_that_held_are_told() -> None:
    text = printed(SUMMARY)
    assert "every site holds the same shared model, bit for bit" in text
    assert "without encryption gives the same models, bit for bit" in text


def test_checks_that_failed_are_told() -> None:
    text = printed(replace(SUMMARY, checks=Checks(max_abs_difference_from_plaintext=0.25, sites_bit_identical=False)))
    assert "the sites' shared models differ" in text
    assert "differs by up to 0.25" in text


def test_a_check_that_was_not_made_is_not_told() -> None:
    text = printed(replace(SUMMARY, checks=Checks(max_abs_difference_from_plaintext=None, sites_bit_identical=None)))
    assert "check" not in text


def test_a_run_that_failed_says_why_and_has_no_empty_table() -> None:
    failed = Outcome(status=RunStatus.FAILED, reason="site-b refused")
    text = printed(replace(SUMMARY, outcome=failed, rounds=1, results={}, pooled=None, traffic=None))
    assert "failed after 1 training round: site-b refused" in text
    assert "Held-out" not in text
    assert "traffic" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_a_terminal(width: int) -> None:
    text = printed(SUMMARY, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
