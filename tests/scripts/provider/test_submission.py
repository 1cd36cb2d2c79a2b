"""What is submitted, and how a run that cannot begin ends, with a real SuperLink and ServerApp but no nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from consortium import golden
from deployment import Hospital, provider_process

import conf
from protocol.agreement import Agreement
from protocol.errors import ConfigurationError
from protocol.notes import UploadCall
from scripts.events import PROVIDER_EVENTS, read_events
from scripts.flower_commands import NodeId
from scripts.provider.admission import AdmittedSite
from scripts.provider.commands import submit
from scripts.provider.directory import ProviderDirectory, ProviderSettings
from scripts.provider.submission import check_first_run, check_roster, compose_agreed, compose_deployed
from scripts.received_files import read_agreement
from scripts.simulation.launcher import EXPERIMENT, RUN_LOG
from server.record import RunRecord
from strategies.history import RunHistory

AGREEMENT = Agreement.from_bytes(golden("agreement"))


def test_a_deployment_waits_longer_and_counts_the_sites_that_are_there():
    config = compose_deployed(["strategy.rounds=3"], 7)

    assert config == conf.compose(["federation=deployment", "strategy.rounds=3", "federation.sites=7"])
    assert config.federation.join_seconds > conf.compose([]).federation.join_seconds


def test_an_experiment_of_four_hospitals_composes_for_three():
    config = compose_deployed(["experiment=heart_disease"], 3)

    assert (config.federation.sites, config.data.name) == (3, "heart_disease")
    assert config.terms == conf.compose(["experiment=heart_disease"]).terms


def test_what_is_said_wins_over_what_is_there():
    assert compose_deployed(["federation.sites=5", "federation=simulation"], 3).federation.sites == 5


def test_without_an_admitted_site_there_is_nothing_to_compose_for():
    with pytest.raises(ConfigurationError, match="no site is admitted yet"):
        compose_deployed([], 0)


def test_the_agreement_fixes_all_but_the_waits():
    config = compose_agreed(AGREEMENT, ["federation.ready_seconds=77"])

    assert config.terms == AGREEMENT.terms
    assert config.federation.sites == len(AGREEMENT.roster)
    assert config.federation.ready_seconds == 77
    assert conf.from_run_config(conf.run_config(config)) == config
    with pytest.raises(ConfigurationError, match=r"strategy\.rounds=3"):
        compose_agreed(AGREEMENT, ["strategy.rounds=3"])


def test_an_agreement_is_read_or_refused(tmp_path):
    path = tmp_path / "agreement.json"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_agreement(path)
    path.write_bytes(AGREEMENT.to_bytes())
    assert read_agreement(path) == AGREEMENT
    path.write_bytes(AGREEMENT.to_bytes() + b" ")
    with pytest.raises(ConfigurationError, match="is no agreement"):
        read_agreement(path)


def test_a_roster_with_other_keys_than_the_admitted_ones_is_refused(monkeypatch):
    hospitals = [Hospital(f"h{number}") for number in range(3)]
    enrolments = [hospital.enrolment() for hospital in hospitals]
    agreement = Agreement(
        roster=tuple(each.card for each in enrolments),
        terms=AGREEMENT.terms,
        code_digest=AGREEMENT.code_digest,
        secret_digest=AGREEMENT.secret_digest,
    )
    admitted = {each.card.name: AdmittedSite(enrolment=each, node=NodeId("1")) for each in enrolments}
    monkeypatch.setattr("scripts.provider.submission.admitted_sites", lambda directory: admitted)

    check_roster(None, agreement)
    admitted["h1"] = replace(admitted["h1"], enrolment=Hospital("h1").enrolment())
    with pytest.raises(ConfigurationError, match="sites h1 are not admitted"):
        check_roster(None, agreement)


def test_a_second_run_of_an_agreement_is_not_submitted_once_an_update_may_have_left(tmp_path):
    provider = ProviderDirectory(tmp_path / "provider")
    name, other = "2026-01-31_12-00-00", "2026-01-31_13-00-00"
    for run in (name, other):
        (provider.runs / run).mkdir(parents=True)
    check_first_run(provider, AGREEMENT)
    record = RunRecord(provider.run(name) / PROVIDER_EVENTS.parent)
    record.keep("agreement.json", AGREEMENT.to_bytes())
    check_first_run(provider, AGREEMENT)  # it failed before anybody was asked to upload

    RunHistory(record).keep_cohort(UploadCall(round=0, cohort=(0, 1, 2)), bytes(32))

    check_first_run(provider, replace(AGREEMENT, secret_digest="0" * 64))
    with pytest.raises(ConfigurationError, match=f"is {name}, and has begun already: .*submit --resume {name}"):
        check_first_run(provider, AGREEMENT)
    record.event("finished")
    with pytest.raises(ConfigurationError, match=r"has ended: for another run make a new agreement") as refusal:
        check_first_run(provider, AGREEMENT)
    assert "--resume" not in str(refusal.value)


def test_the_runs_of_another_release_keep_nobody_from_submitting(tmp_path):
    provider = ProviderDirectory(tmp_path / "provider")
    older = json.loads(AGREEMENT.to_bytes())
    older["terms"]["a_key_of_another_release"] = 1
    for name, agreement in (("2026-01-31_12-00-00", json.dumps(older).encode()), ("2026-01-31_13-00-00", b"\xff")):
        (provider.runs / name).mkdir(parents=True)
        record = RunRecord(provider.run(name) / PROVIDER_EVENTS.parent)
        record.keep("agreement.json", agreement)
        record.keep("cohorts/round-00000.cwc", b"of another release")

    check_first_run(provider, AGREEMENT)


def test_that_the_provider_does_not_run_is_told_before_anything_else(tmp_path):
    provider = ProviderDirectory(tmp_path / "provider")
    provider.found(ProviderSettings(hosts=("localhost",), listen="127.0.0.1", port=9092), None)
    agreement = tmp_path / "agreement.json"
    agreement.write_bytes(AGREEMENT.to_bytes())  # none of whose sites is admitted

    with pytest.raises(ConfigurationError, match="the provider does not run: start it"):
        submit([], directory=provider.path, agreement=agreement)


@pytest.mark.simulation
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their environment")
def test_a_run_to_which_nobody_comes_fails_aloud_and_can_be_gone_on_with(tmp_path):
    with provider_process(tmp_path / "provider") as provider:
        provider.start()
        waits = "federation.join_seconds=1"

        done = provider.command("submit", "federation.sites=3", waits)

        assert done.returncode == 1
        (name,) = provider.directory.run_names()
        assert f"submitted run {name} for 3 sites" in done.stdout
        assert "waiting for 3 sites" in done.stdout
        assert "the run failed" in done.stderr
        assert f"to go on with it: cipherward submit --resume {name}" in done.stderr
        run = provider.directory.run(name)
        assert (run / RUN_LOG).stat().st_size > 0
        submitted = conf.from_yaml((run / EXPERIMENT).read_text())
        assert submitted.federation.join_seconds == 1
        assert [event["event"] for event in read_events(run / PROVIDER_EVENTS)] == ["started", "failed"]

        assert provider.command("submit", "--resume", name).returncode == 1

        assert provider.directory.run_names() == [name]
        kinds = [event["event"] for event in read_events(run / PROVIDER_EVENTS)]
        assert kinds == ["started", "failed"] * 2
        status = json.loads(provider.command("provider", "status", "--json").stdout)
        assert [(each["name"], each["state"], each["round"]) for each in status["runs"]] == [(name, "failed", None)]
        assert "no run 2026-01-31_12-00-00" in provider.command("submit", "--resume", "2026-01-31_12-00-00").stderr
