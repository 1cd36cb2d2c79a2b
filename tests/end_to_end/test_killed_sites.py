"""Sixteen hospitals, each a process of its own, of which two are killed again and again while they learn.

A killed process is gone at once, before it handles a message, between any two steps on its disk, or after it is done
and before its reply leaves; whatever is to outlive it stands in the vault. Rounds go on without who is away, who comes
back is caught up, and the model at the end is, to the last bit, the one that the same cohorts learn without encryption.

A failure prints its seed and the deaths; `KILL_SEED=<seed>` in the environment plays that seed alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord
from process_grid import Death, ProcessGrid

from clients.run.upload_journal import JOURNAL
from protocol.envelope import ROUND_NUMBER, Request, pack_list, unpack_envelope
from protocol.notes import UploadCall
from scripts.simulation.twin import plaintext_models
from server.record import RunRecord
from strategies.encrypted_fedavg import EncryptedFedAvg
from strategies.opening import make_request

SITES, ROUNDS = 16, 20
STEPS = {Request.PREPARE: 14, Request.UPLOAD: 4}
"""Steps on disk that a request of a training round takes at most."""

LONGEST_ABSENCE = 45
"""Messages; with some 31 a round, a site is back for the round after the next."""

FEWEST_DEATHS = 4
LONGEST_ABSENCE_SECONDS = 2.0
"""While a round waits for an upload there are no messages to count."""

SEEDS = [int(os.environ["KILL_SEED"])] if "KILL_SEED" in os.environ else [1]


@pytest.fixture
def hospitals(found, founded_once):
    """Sixteen hospitals that have pinned their agreement."""
    experiment = founded_once.experiment
    return found(
        replace(
            experiment,
            strategy=replace(experiment.strategy, rounds=ROUNDS),
            federation=replace(experiment.federation, sites=SITES),
        )
    )


def grid_of(federation, deaths):
    vaults = [federation.vault(site).directory for site in federation.everyone]
    return ProcessGrid(vaults, deaths)


def learn(federation, deaths):
    """Run the whole federation and return the deaths that came; everybody is back who is to come back.

    Rounds go on without a site that is away: one that takes long to start again misses a death that was meant for it.
    """
    print(f"{len(deaths)} deaths:", *deaths, sep="\n")
    with grid_of(federation, deaths) as grid:
        strategy = EncryptedFedAvg(
            terms=federation.experiment.terms,
            sites=SITES,
            join_seconds=60.0,
            ready_seconds=60.0,
            upload_seconds=60.0,
            journal=RunRecord(federation.directory / "provider"),
        )
        strategy.start(grid, ArrayRecord(), num_rounds=ROUNDS)
    came = [death for death in deaths if death in grid.died]
    assert len(came) == len(grid.died) >= FEWEST_DEATHS
    assert [death for death in deaths if is_final(death)] == [death for death in came if is_final(death)]
    assert sorted(grid.returned) == sorted(death.site for death in came if not is_final(death))
    return came


def is_final(death):
    return death.away_messages is None and death.away_seconds is None


def events(federation, name):
    lines = (federation.directory / "provider" / "events.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == name]


def secrets(federation, site):
    return [path.name for path in federation.vault(site).directory.glob("runs/*/*.secret")]


def check_end(federation, deaths):
    """The run is over, with one model everywhere, the twin's; nobody uploaded twice, and who closed has no secret."""
    (gone,) = {death.site for death in deaths if is_final(death)}
    survivors = [site for site in federation.everyone if site != gone]
    names = {site: federation.member(site).name for site in federation.everyone}
    (finished,) = events(federation, "finished")
    assert finished["closed"] == [names[site] for site in survivors]
    assert finished["not_closed"] == [names[gone]]
    assert finished["states_identical"] is True

    twins = plaintext_models(federation.directory)
    model = federation.values(survivors[0])
    for site in survivors:
        assert np.array_equal(federation.values(site), model)
        assert np.array_equal(federation.values(site), twins[names[site]])

    for site in federation.everyone:
        states = [entry["state"] for entry in federation.vault(site).lines(JOURNAL)]
        assert len(states) == len(set(states))
    assert all(secrets(federation, site) == [] for site in survivors)
    assert secrets(federation, gone) != []

    # how many rounds pass until a site is caught up depends on the machine: that it closes says that it was
    cohorts = {entry["round"]: entry["cohort"] for entry in events(federation, "round")}
    assert list(cohorts) == list(range(ROUNDS + 2))
    undisturbed = {names[site] for site in federation.everyone} - {names[death.site] for death in deaths}
    assert all(undisturbed <= set(cohort) for cohort in cohorts.values())
    assert names[gone] not in cohorts[ROUNDS + 1]
    for death in deaths:
        in_time = death.request is Request.UPLOAD
        assert (names[death.site] in cohorts[death.round]) is in_time, death


def deaths_while_preparing(seed):
    """Draw a site that comes back from each of five deaths, and one that comes back from its first of two."""
    draw = random.Random(seed)
    returning, leaving = draw.sample(range(SITES), 2)

    def death(site, round_number, away):
        step = draw.randint(0, STEPS[Request.PREPARE] + 1)
        return Death(site=site, round=round_number, request=Request.PREPARE, step=step, away_messages=away)

    def absence():
        return draw.randint(0, LONGEST_ABSENCE)

    return [
        *(death(returning, round_number + draw.randint(0, 1), absence()) for round_number in range(1, ROUNDS, 4)),
        death(leaving, draw.randint(1, 4), absence()),
        death(leaving, draw.randint(16, ROUNDS), None),
    ]


def deaths_around_uploads(seed):
    """Draw a site that dies three times between cohort and upload and twice before, and one that does so once each.

    They come back as another node or as the same; the second one's last death, before its cohort is named, is for good.
    """
    draw = random.Random(seed)
    returning, leaving = draw.sample(range(SITES), 2)

    def death(site, round_number, request):
        return Death(
            site=site,
            round=round_number,
            request=request,
            step=draw.randint(0, STEPS[request] + 1),
            away_messages=draw.randint(0, LONGEST_ABSENCE) if request is Request.PREPARE else None,
            away_seconds=draw.uniform(0, LONGEST_ABSENCE_SECONDS) if request is Request.UPLOAD else None,
            is_renumbered=draw.random() < 0.5,
        )

    requests = [Request.UPLOAD] * 3 + [Request.PREPARE] * 2
    draw.shuffle(requests)
    last = death(leaving, draw.randint(16, ROUNDS), Request.PREPARE)
    return [
        *(death(returning, 4 * number + draw.randint(1, 2), request) for number, request in enumerate(requests)),
        death(leaving, draw.randint(1, 4), Request.UPLOAD),
        replace(last, away_messages=None, is_renumbered=False),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_round_waits_for_sites_killed_between_cohort_and_upload(hospitals, seed):
    deaths = deaths_around_uploads(seed)

    check_end(hospitals, learn(hospitals, deaths))


@pytest.mark.parametrize("seed", SEEDS)
def test_sites_killed_while_they_prepare_are_left_out_and_come_back(hospitals, seed):
    deaths = deaths_while_preparing(seed)

    check_end(hospitals, learn(hospitals, deaths))


def answers_around(federation, death, **parts):
    """Ask a site for what it dies of, and again when it is back; return both replies, and which nodes it was."""
    with grid_of(federation, [death]) as grid:
        before = set(grid.get_node_ids())
        node = sorted(before)[death.site]
        (first,) = grid.send_and_receive([make_request(death.request, node, run=federation.run, **parts)])
        (back,) = set(grid.get_node_ids()) - before or {node}
        (second,) = grid.send_and_receive([make_request(death.request, back, run=federation.run, **parts)])
    assert grid.died == [death]
    return first, second, (node, back)


@pytest.mark.parametrize("step", range(STEPS[Request.PREPARE] + 2))
def test_a_site_that_died_of_preparing_says_when_it_is_back_what_it_would_have_said(started, tmp_path, step):
    started.sum_up()
    note = started.copied_to(tmp_path / "undisturbed").prepare(1, 2)
    death = Death(site=1, round=2, request=Request.PREPARE, step=step, away_messages=0)

    first, second, nodes = answers_around(started, death, round=ROUND_NUMBER.pack(2), history=pack_list(started.sums))

    assert first.has_error()
    assert unpack_envelope(second.content, ["note"]) == {"note": note}
    assert nodes == (101, 101)


@pytest.mark.parametrize("step", range(STEPS[Request.UPLOAD] + 2))
def test_a_site_that_died_of_uploading_uploads_when_it_is_back_under_another_number_and_only_once(started, step):
    cohort = started.everyone
    death = Death(site=1, round=1, request=Request.UPLOAD, step=step, away_messages=0, is_renumbered=True)

    first, second, nodes = answers_around(started, death, call=UploadCall(round=1, cohort=cohort).to_bytes())

    assert first.has_error()
    update = unpack_envelope(second.content, ["update"])["update"]
    (entry,) = [entry for entry in started.vault(1).lines(JOURNAL) if entry["round"] == 1]
    assert entry["sha256"] == hashlib.sha256(update).hexdigest()
    assert started.upload(1, cohort) == update
    assert nodes == (101, 104)
