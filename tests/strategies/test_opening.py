"""The provider opens a run: it finds the sites, and carries what it cannot read."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import replace

import pytest
from flwr.app import Error, Message

from clients.run.files import RunFiles
from clients.secrets.keys import EpochKeys
from protocol.envelope import ANSWER_PARTS, Request, pack_envelope, pack_list, pack_refusal, unpack_envelope
from protocol.errors import AgreementMismatchError, CohortError, LengthError
from protocol.handshake import RUN_BYTES
from strategies.history import RunHistory
from strategies.opening import open_run
from strategies.replies import make_request, read_replies
from strategies.streaming_grid import StreamingGrid
from strategies.wrapped_grid import WrappedGrid

RUN = bytes(range(RUN_BYTES))


class Journal:
    """Remembers what it is told and what it is to keep."""

    def __init__(self):
        self.events = []
        self.kept = {"run.id": RUN}

    def keep(self, name, data):
        self.kept[name] = data

    def load(self, name):
        return self.kept.get(name)

    def event(self, name, **fields):
        self.events.append((name, fields))

    def named(self, name):
        return [fields for event, fields in self.events if event == name]


@pytest.fixture
def journal():
    return Journal()


@pytest.fixture
def open_(founded, grid_of, journal):
    def open_over(
        interfere=lambda reply: reply, *, nodes=None, terms=None, sites=None, join_seconds=0.0, wrap=lambda grid: grid
    ):
        return open_run(
            StreamingGrid(wrap(grid_of(founded, interfere, nodes=nodes))),
            history=RunHistory(journal),
            terms=terms or founded.experiment.terms,
            sites=len(founded.everyone) if sites is None else sites,
            join_seconds=join_seconds,
            answer_seconds=0.1,
            journal=journal,
        )

    return open_over


def nodes_of(opened):
    """Return the node at which each present site is."""
    return {site: opened.request(Request.VOID, site).metadata.dst_node_id for site in opened.present}


def replacing(node, request, content):
    """Replace one node's reply to one request; None loses it."""

    def interfere(reply):
        if (reply.metadata.src_node_id, reply.metadata.message_type) != (node, str(request)):
            return reply
        if content is None:
            return None
        reply.content = content(reply) if callable(content) else content
        return reply

    return interfere


def test_all_sites_end_up_with_one_secret_that_the_provider_has_not_seen(open_, founded, journal):
    opened = open_()

    assert opened.run.session.sites == (0, 1, 2, 3)
    assert nodes_of(opened) == {0: 100, 1: 101, 2: 102, 3: 103}
    assert opened.run.agreement.digest == founded.agreement.digest
    secrets = {RunFiles(founded.vault(site), RUN).epoch().common.reveal() for site in founded.everyone}
    assert len(secrets) == 1
    assert [name for name, _ in journal.events] == ["joined", "opened"]
    assert journal.named("opened") == [{"sites": 4}]


def test_nodes_may_come_in_any_order(open_):
    opened = open_(nodes=[103, 100, 102, 101])

    assert opened.run.session.sites == (0, 1, 2, 3)
    assert nodes_of(opened) == {0: 100, 1: 101, 2: 102, 3: 103}


def test_the_smallest_cohort_is_enough(open_):
    assert open_(nodes=[101, 102, 103]).run.session.sites == (1, 2, 3)


def test_with_fewer_nodes_than_the_smallest_cohort_it_says_so(open_, founded):
    with pytest.raises(CohortError, match=r"smallest cohort.*expected at least 3, got 2"):
        open_(nodes=[100, 101])
    assert not founded.vault(0).path("runs").exists()


class StrangersGrid(WrappedGrid):
    """Also lists nodes of another consortium, which refuse; a site of ours connects after some looks."""

    def __init__(self, grid, *, late, looks):
        super().__init__(grid)
        self.late = late
        self.looks = looks
        self.strangers = [900, 901, 902]
        self.refusals = {}

    def get_node_ids(self):
        self.looks -= 1
        ours = [node for node in self._grid.get_node_ids() if node != self.late or self.looks < 0]
        return [*self.strangers, *ours]

    def push_messages(self, messages):
        (message,) = messages
        if message.metadata.dst_node_id not in self.strangers:
            return self._grid.push_messages([message])
        name = f"stranger {len(self.refusals)}"
        self.refusals[name] = Message(pack_refusal(), reply_to=message)
        return [name]

    def pull_messages(self, message_ids):
        (name,) = message_ids
        return [self.refusals[name]] if name in self.refusals else self._grid.pull_messages([name])


def test_nodes_of_others_are_not_taken_for_the_sites_that_are_waited_for(open_, journal):
    opened = open_(join_seconds=60.0, wrap=lambda grid: StrangersGrid(grid, late=103, looks=5))

    assert opened.run.session.sites == (0, 1, 2, 3)
    (joining,) = journal.named("joining")
    assert joining["text"].startswith("3 of 4 sites are there; the others have 60 s")


def test_a_site_that_vanishes_before_it_answers_is_asked_again_when_it_is_back(open_, monkeypatch):
    monkeypatch.setattr("strategies.opening._AGAIN_SECONDS", 3600.0)
    grids, looks = [], []

    class VanishingGrid(WrappedGrid):
        def get_node_ids(self):
            looks.append(True)
            if len(looks) == 4:
                grids[0].bring_back(102)
            return self._grid.get_node_ids()

    def keep(grid):
        grids.append(grid)
        return VanishingGrid(grid)

    def vanish(reply):
        if reply.metadata.src_node_id != 102 or len(looks) > 1:
            return reply
        grids[0].take_down(102)
        return None

    assert open_(vanish, join_seconds=60.0, wrap=keep).run.session.sites == (0, 1, 2, 3)


class EditedGrid(WrappedGrid):
    """Has the list of nodes, or what nodes answer, edited."""

    def __init__(self, grid, nodes=lambda nodes: nodes, replies=lambda replies: replies):
        super().__init__(grid)
        self.nodes = nodes
        self.replies = replies

    def get_node_ids(self):
        return self.nodes(list(self._grid.get_node_ids()))

    def pull_messages(self, message_ids):
        return self.replies(list(self._grid.pull_messages(message_ids)))


def test_a_site_that_leaves_after_it_has_announced_is_in_no_session(open_):
    looks = []

    def steward_leaves_before_the_last_comes(nodes):
        looks.append(True)
        return [node for node in nodes if node != (103 if len(looks) < 3 else 100)]

    opened = open_(join_seconds=1.0, wrap=lambda grid: EditedGrid(grid, nodes=steward_leaves_before_the_last_comes))

    assert opened.run.session.sites == (1, 2, 3)


@pytest.mark.parametrize("rounds", [2, 5])  # of the terms; the run has 2
def test_a_node_that_answers_often_has_one_voice_and_a_stranger_s_has_none(open_, founded, rounds):
    terms = founded.experiment.terms
    other = replace(
        founded.agreement, code_digest="0" * 64, terms=replace(terms, training=replace(terms.training, rounds=rounds))
    )

    def five_times(replies):
        (reply,) = replies
        if (reply.metadata.src_node_id, reply.metadata.message_type) != (103, str(Request.ANNOUNCE)):
            return replies
        parts = unpack_envelope(reply.content, ANSWER_PARTS[Request.ANNOUNCE])
        reply.content = pack_envelope({**parts, "agreement": other.to_bytes()})
        return [deepcopy(reply) for _ in range(5)]

    opened = open_(join_seconds=1.0, wrap=lambda grid: EditedGrid(grid, replies=five_times))

    assert opened.run.agreement.digest == founded.agreement.digest


def test_a_run_that_is_open_already_waits_for_nobody_who_cannot_join(open_):
    open_(nodes=[100, 101, 102])
    started = time.monotonic()

    opened = open_(replacing(103, Request.ANNOUNCE, pack_refusal()), join_seconds=60.0)

    assert opened.present == (0, 1, 2)
    assert time.monotonic() - started < 30


def test_all_sites_are_waited_for_no_longer_than_they_may_take(open_):
    started = time.monotonic()

    opened = open_(join_seconds=1.0, wrap=lambda grid: StrangersGrid(grid, late=103, looks=1 << 30))

    assert opened.run.session.sites == (0, 1, 2)
    assert 1.0 <= time.monotonic() - started < 30


def test_a_site_that_refused_is_asked_again_as_long_as_sites_may_come(open_, monkeypatch):
    monkeypatch.setattr("strategies.opening._AGAIN_SECONDS", 0.1)
    refused = []

    def refuse_once(reply):
        if reply.metadata.src_node_id == 102 and not refused:
            refused.append(True)
            reply.content = pack_refusal()
        return reply

    assert open_(refuse_once, join_seconds=60.0).run.session.sites == (0, 1, 2, 3)
    assert refused


def test_a_site_that_refuses_is_left_out_and_recorded(open_, journal):
    opened = open_(replacing(102, Request.ANNOUNCE, pack_refusal()))

    assert opened.run.session.sites == (0, 1, 3)
    assert journal.named("refused-by-site") == [{"node": "102", "request": "query.announce"}]


def test_a_site_that_does_not_answer_is_left_out(open_):
    assert open_(replacing(100, Request.ANNOUNCE, None)).run.session.sites == (1, 2, 3)


def test_a_node_whose_app_fails_is_left_out_and_recorded(open_, journal):
    def fail(reply):
        if (reply.metadata.src_node_id, reply.metadata.message_type) != (101, str(Request.ANNOUNCE)):
            return reply
        return Message(Error(code=3, reason="something"), reply_to=make_request(Request.ANNOUNCE, 101, run=RUN))

    assert open_(fail).run.session.sites == (0, 2, 3)
    assert journal.named("no-answer") == [{"node": "101", "request": "query.announce", "code": 3}]


def test_too_few_answers_are_no_cohort(open_):
    def lose_two(reply):
        return None if reply.metadata.src_node_id in (100, 101) else reply

    with pytest.raises(CohortError, match="at least 3, got 2"):
        open_(lose_two)


def test_no_answer_at_all_is_no_cohort(open_):
    with pytest.raises(CohortError, match="got 0"):
        open_(lambda reply: None)


def altered_card(reply):
    parts = unpack_envelope(reply.content, ANSWER_PARTS[Request.ANNOUNCE])
    return pack_envelope({**parts, "card": parts["card"][:-1] + bytes([parts["card"][-1] ^ 1])})


def test_a_card_that_its_site_did_not_sign_is_left_out(open_, journal):
    opened = open_(replacing(103, Request.ANNOUNCE, altered_card))

    assert opened.run.session.sites == (0, 1, 2)
    assert "signature" in journal.named("refused")[0]["reason"]


def test_the_agreement_that_most_sites_present_is_taken(open_, founded):
    other = replace(founded.agreement, code_digest="0" * 64)

    def with_other_agreement(reply):
        return pack_envelope(
            {**unpack_envelope(reply.content, ANSWER_PARTS[Request.ANNOUNCE]), "agreement": other.to_bytes()}
        )

    assert (
        open_(replacing(103, Request.ANNOUNCE, with_other_agreement)).run.agreement.digest == founded.agreement.digest
    )


def test_one_site_s_card_from_two_nodes_counts_once(open_):
    cards = {}

    def copy_node_0(reply):
        if reply.metadata.message_type == str(Request.ANNOUNCE):
            cards.setdefault("first", reply.content)
            if reply.metadata.src_node_id == 101:
                reply.content = cards["first"]
        return reply

    opened = open_(copy_node_0)
    assert opened.run.session.sites == (0, 2, 3)
    assert nodes_of(opened)[0] == 100


def test_sites_under_other_terms_than_the_run_s_are_not_opened(open_, founded):
    terms = founded.experiment.terms
    other = replace(terms, training=replace(terms.training, rounds=5))

    with pytest.raises(AgreementMismatchError):
        open_(terms=other)


def test_without_the_steward_s_answer_there_is_no_run(open_):
    with pytest.raises(CohortError, match="steward"):
        open_(replacing(100, Request.ENTRUST, None))


@pytest.mark.parametrize("count", [0, 2])
def test_a_steward_that_seals_for_too_few_is_refused(open_, count):
    with pytest.raises(LengthError):
        open_(replacing(100, Request.ENTRUST, pack_envelope({"secrets": pack_list([b"sealed"] * count)})))


def test_a_site_that_cannot_open_its_secret_is_seen_in_the_record(open_, founded, journal):
    def planted(reply):
        return pack_envelope({"secrets": pack_list([EpochKeys.draw().reveal()] * 3)})

    open_(replacing(100, Request.ENTRUST, planted))

    assert journal.named("opened") == [{"sites": 1}]
    assert len(journal.named("refused-by-site")) == 3
    assert RunFiles(founded.vault(1), RUN).session() is None


def test_a_reply_that_is_none_of_ours_is_recorded_and_passed_over(open_, journal):
    opened = open_(replacing(103, Request.ANNOUNCE, pack_envelope({"something": b"else"})))

    assert opened.run.session.sites == (0, 1, 2)
    assert "message parts" in journal.named("refused")[0]["reason"]


def test_good_answers_come_with_their_node(open_, founded, grid_of, journal):
    grid = grid_of(founded)
    replies = grid.send_and_receive([make_request(Request.ANNOUNCE, node, run=RUN) for node in (103, 101)])

    assert [reply.node for reply in read_replies(replies, journal)] == [103, 101]


def test_a_run_that_was_opened_before_is_opened_again_without_a_new_secret(open_, founded, journal):
    before = open_().run
    kept = dict(journal.kept)

    again = open_(nodes=[101, 102, 103])  # the steward is not needed

    assert again.run == before
    assert again.present == (1, 2, 3)
    assert journal.kept == kept


def test_a_site_that_did_not_get_its_secret_gets_it_when_the_run_is_opened_again(open_, founded, journal):
    opened = open_(replacing(102, Request.OPEN, None))
    assert opened.present == (0, 1, 3)
    assert journal.named("absent")[0]["sites"] == ["hospital-3"]

    assert open_().present == (0, 1, 2, 3)


def test_what_is_needed_to_go_on_is_kept_before_anyone_could_act_on_it(open_, journal):
    seen = []

    def look(reply):
        seen.append((reply.metadata.message_type, sorted(journal.kept)))
        return reply

    open_(look)

    kept = dict(reversed(seen))
    assert kept["query.announce"] == ["run.id"]
    assert kept["query.entrust"] == ["agreement.json", "run.id", "session.cwk"]
    assert kept["query.open"] == ["agreement.json", "run.id", "secrets.cws", "session.cwk"]


def test_a_steward_that_is_away_is_named(open_):
    with pytest.raises(CohortError, match="hospital-1"):
        open_(replacing(100, Request.ENTRUST, None))
    with pytest.raises(CohortError, match="hospital-1"):
        open_(nodes=[101, 102, 103])  # the session is fixed, and this is its steward
