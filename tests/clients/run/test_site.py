"""A site answers each request from what is in its vault, and changes nothing when it refuses."""

from __future__ import annotations

import hashlib
import threading

import pytest

import clients.run.site
import clients.secrets.vault
from clients.run.site import Site
from protocol.envelope import ANSWER_PARTS, Request, pack_list, unpack_round
from protocol.errors import BackendError, ConfigurationError, FederationError, LengthError, MalformedError

EVERYONE = (0, 1, 2, 3)


def contents(federation, position):
    """Digest every file of a vault but its log."""
    directory = federation.vault(position).directory
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in (".lock", "events.jsonl")
    }


def test_a_site_announces_the_agreement_that_it_pinned(founded):
    answer = founded.ask(2, Request.ANNOUNCE)

    assert set(answer) == set(ANSWER_PARTS[Request.ANNOUNCE])
    assert answer["agreement"] == founded.agreement.to_bytes()


def test_a_site_announces_the_round_whose_sum_it_needs_next(summed):
    # what a provider that has lost sight of the site sends it the history from
    assert unpack_round(summed.ask(2, Request.ANNOUNCE)["round"]) == 3

    summed.close(2)

    assert unpack_round(summed.ask(2, Request.ANNOUNCE)["round"]) == 4


def test_a_site_that_has_just_joined_needs_the_first_sum(founded):
    assert unpack_round(founded.ask(2, Request.ANNOUNCE)["round"]) == 0


@pytest.mark.parametrize("length", [0, 15, 17, 1000])
def test_a_run_id_of_another_length_makes_no_directory(founded, length):
    founded.run = bytes(length)

    with pytest.raises(LengthError):
        founded.ask(1, Request.ANNOUNCE)
    assert not founded.vault(1).path("runs").exists()


@pytest.mark.parametrize("round_bytes", [b"", b"\x01", bytes(5), bytes(8)])
def test_a_round_number_of_another_length_is_refused(started, round_bytes):
    for request, extra in ((Request.PREPARE, {"history": pack_list([])}), (Request.VOID, {})):
        with pytest.raises(LengthError):
            started.ask(1, request, round=round_bytes, **extra)


@pytest.mark.parametrize("aggregates", [b"", bytes(7), b"\xff" * 8, pack_list([b"x"])[:-1], pack_list([b"x"]) + b"x"])
def test_a_list_of_sums_that_is_none_is_refused(started, aggregates):
    for request, extra in ((Request.PREPARE, {"round": bytes(4)}), (Request.CATCH_UP, {}), (Request.CLOSE, {})):
        with pytest.raises(MalformedError):
            started.ask(1, request, history=aggregates, **extra)


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        (Request.ENTRUST, {"session": b"x"}),
        (Request.OPEN, {"session": b"x", "secret": b"x"}),
        (Request.CATCH_UP, {"history": pack_list([b"sum"])}),
        (Request.PREPARE, {"round": (9).to_bytes(4, "little"), "history": pack_list([])}),
        (Request.PREPARE, {"round": (1).to_bytes(4, "little"), "history": pack_list([b"sum"])}),
        (Request.UPLOAD, {"call": b"x"}),
        (Request.VOID, {"round": (9).to_bytes(4, "little")}),
        (Request.CLOSE, {"history": pack_list([])}),
    ],
    ids=lambda value: str(value) if isinstance(value, Request) else "",
)
def test_a_refused_request_changes_nothing_but_the_log(started, request_, parts):
    before = contents(started, 1)

    with pytest.raises(FederationError):
        started.ask(1, request_, **parts)

    assert contents(started, 1) == before


def test_messages_of_one_site_are_handled_one_after_the_other(started, monkeypatch):
    # two processes that get one upload request each, with different cohorts: exactly one is answered
    answers = []

    def ask(cohort):
        try:
            answers.append(started.upload(1, cohort))
        except FederationError as error:
            answers.append(error)

    threads = [threading.Thread(target=ask, args=(cohort,)) for cohort in (EVERYONE, (0, 1, 2), (1, 2, 3), (0, 1, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len([answer for answer in answers if isinstance(answer, bytes)]) == 1
    assert len(answers) == 4


def test_a_vault_in_use_is_waited_for_and_then_given_up(started, monkeypatch):
    monkeypatch.setattr(clients.secrets.vault, "LOCK_SECONDS", 0.1)
    with started.vault(1).locked(), pytest.raises(ConfigurationError, match="another process"):
        started.upload(1, EVERYONE)
    started.upload(1, EVERYONE)


def test_a_site_does_not_start_on_a_backend_that_it_was_not_built_for(founded, monkeypatch):
    def refuse(parameters):
        raise BackendError("another SEAL")

    monkeypatch.setattr(clients.run.site, "check_backend", refuse)

    with pytest.raises(BackendError):
        Site.of(founded.vault(0))


def test_a_site_needs_nothing_but_its_vault(started):
    first = started.site(1)
    note = started.prepare(1, 1)

    assert Site.of(started.vault(1)).membership.name == first.membership.name == "hospital-2"
    assert started.prepare(1, 1) == note
