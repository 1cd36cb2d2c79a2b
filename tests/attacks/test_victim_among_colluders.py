"""A cohort in which the victim is alone among colluders, under whatever name they come.

Who: the provider, and as many sites as the agreement tolerates (one). Want: a sum from which nothing but the victim's
update is left once the colluders' own are subtracted. Answer: every site checks the cohort itself before it uploads
(`Agreement.check_cohort`): at least `smallest_cohort` sites, each once, of the roster, and of the statistics sum, so
that no site comes in that nobody has weighted. Two nodes that pose as one site share its vault and its one upload.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from coalition import (
    Insider,
    call_parts,
    collect,
    journal,
    model_fields,
    refusal,
    stands_at,
    truth,
)
from flwr.app import Message

import conf
from clients.app import app
from protocol.agreement import Agreement
from protocol.envelope import Request, pack_envelope, unpack_envelope
from protocol.errors import CohortError, PeerRefusedError
from protocol.update import SealedUpdate
from scripts.simulation.in_process import InProcessGrid

INSIDER, VICTIM = 0, 3
EVERYONE = (0, 1, 2, 3)
CHECK_COHORT = Agreement.check_cohort


def without(*what):
    """Return the cohort check without the complaints about these things."""

    def check(self, cohort, *, members=None):
        try:
            CHECK_COHORT(self, cohort, members=members)
        except CohortError as error:
            if error.what not in what:
                raise

    return check


@pytest.mark.parametrize(
    ("cohort", "unchecked"), [((0, 3), "cohort size"), ((0, 0, 3), "cohort order")], ids=["too few", "one site twice"]
)
def test_unchecked_the_cohort_s_sum_is_the_victim_s_update_beside_the_insider_s(
    started, monkeypatch, cohort, unchecked
):
    monkeypatch.setattr(Agreement, "check_cohort", without(unchecked))
    insider, state = Insider(started, INSIDER), stands_at(started, INSIDER)[1]
    terms, secret = insider.terms(1, cohort, state), truth(started, VICTIM)

    update = SealedUpdate.from_bytes(started.upload(VICTIM, cohort), terms)

    stolen = insider.read([insider.unmask(update, terms, state)])
    assert model_fields(started.agreement, 1, stolen) == model_fields(started.agreement, 1, secret)


@pytest.mark.parametrize("cohort", [(0, 3), (0, 0, 3), (3,), (0, 3, 3), (0, 3, 4), (3, 0, 0)], ids=str)
def test_such_a_cohort_is_refused_and_costs_nothing(started, grid_of, cohort):
    left = journal(started, VICTIM)

    assert refusal(grid_of(started), started, VICTIM, Request.UPLOAD, **call_parts(1, cohort)) == CohortError.__name__

    assert journal(started, VICTIM) == left
    started.upload(VICTIM, EVERYONE)


def test_a_run_with_the_victim_among_colluders_alone_is_never_opened(founded, grid_of):
    founded.announce()
    grid = grid_of(founded)

    for sites in ((0, 3), (0, 0, 3)):
        session = founded.session_of(*sites)
        assert refusal(grid, founded, 0, Request.ENTRUST, session=session) == CohortError.__name__
        assert refusal(grid, founded, 3, Request.OPEN, session=session, secret=bytes(248)) == CohortError.__name__


def test_if_strangers_to_the_statistics_could_join_weights_would_exceed_the_whole(opened, monkeypatch):
    # the sum then moves the model by more than a mean, and its range is no longer known to be safe
    opened.prepare_all()
    opened.sum_up((0, 1, 3))
    monkeypatch.setattr(Agreement, "check_cohort", without("cohort"))
    for site in EVERYONE:
        opened.prepare(site, 1)
    plan = opened.agreement.plan(opened.agreement.round_kind(1))
    unit = 1 << (opened.agreement.parameters.value_bits - 2)
    weights = [plan.unpack(truth(opened, site))["weight"].item() / unit for site in EVERYONE]

    released = Insider(opened, INSIDER).read_sum(collect(opened, EVERYONE))

    assert sum(weights) > 1.25  # four of four sites, by the patients of three
    # the stranger's update left and is in the sum
    parts = [model_fields(opened.agreement, 1, truth(opened, site))["output.weight"] for site in EVERYONE]
    summed = [sum(column) for column in zip(*parts, strict=True)]
    assert model_fields(opened.agreement, 1, released)["output.weight"] == summed


def test_strangers_to_the_statistics_stay_out(opened, grid_of):
    opened.prepare_all()
    opened.sum_up((0, 1, 3))
    for site in EVERYONE:
        opened.prepare(site, 1)
    grid = grid_of(opened)

    for site in (1, 2, 3):
        for cohort in (EVERYONE, tuple(sorted({0, 2, site, 3}))):
            assert refusal(grid, opened, site, Request.UPLOAD, **call_parts(1, cohort)) == CohortError.__name__
    opened.upload(VICTIM, (0, 1, 3))


def test_two_nodes_of_one_site_have_one_upload_between_them(started, grid_of):
    grid_of(started)  # sets the run's directory
    nodes = {number: {"partition-id": VICTIM, "num-partitions": 4} for number in (103, 203)}
    grid = InProcessGrid(app, nodes, {"hydra": conf.to_yaml(started.experiment)})

    def ask(node, cohort):
        content = pack_envelope({"run": started.run, **call_parts(1, cohort)})
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=node, message_type=Request.UPLOAD)])
        with suppress(PeerRefusedError):
            return unpack_envelope(reply.content, ["update"])["update"]
        return None

    first = ask(103, EVERYONE)

    assert first is not None
    assert ask(203, (0, 1, 3)) is None
    assert ask(203, EVERYONE) == first
