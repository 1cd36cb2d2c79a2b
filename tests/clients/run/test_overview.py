"""How a vault's runs stand, also those of an agreement with another roster than the pinned one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clients.run.files import RunFiles
from clients.run.membership import Place, pin
from clients.run.model_release import releasable_model
from clients.run.overview import end_run, open_runs, run_overviews
from protocol.envelope import Request
from protocol.errors import ConfigurationError


def pin_shrunk_roster(federation, position, *, left):
    """Have a site pin an agreement without some of the sites; the others move up."""
    agreement = federation.agreement
    roster = tuple(card for site, card in enumerate(agreement.roster) if site not in left)
    secret = federation.member(position).consortium_secret
    shrunk = replace(agreement, roster=roster)
    return pin(federation.vault(position), agreement=shrunk, consortium_secret=secret, may_replace=True)


def test_a_run_of_the_pinned_agreement_is_told_with_its_sites_names(started):
    started.site(1).overrule(started.run, 1, "hospital-4")
    started.ask(1, Request.VOID, round=(1).to_bytes(4, "little"))

    (overview,) = run_overviews(started.member(1))

    assert overview.is_pinned
    assert (overview.run, overview.next_round, overview.last_round) == (started.run, 1, 3)
    assert overview.given_up == ("hospital-2", "hospital-4")


@pytest.mark.parametrize("left", [3, 0], ids=["a number too many", "other numbers"])
def test_a_run_of_another_roster_is_told_without_names(started, left):
    started.site(1).overrule(started.run, 1, "hospital-4")
    started.upload(1, (0, 1, 2))

    (overview,) = run_overviews(pin_shrunk_roster(started, 1, left=(left,)))

    assert not overview.is_pinned
    assert (overview.next_round, overview.last_round) == (1, None)
    assert overview.given_up == ("site 4",)
    assert overview.has_uploaded
    assert overview.has_secrets


def test_what_left_before_the_first_sum_of_another_agreements_run_is_seen(opened):
    opened.prepare_all()
    opened.upload(1, (0, 1, 2))

    (overview,) = run_overviews(pin_shrunk_roster(opened, 1, left=(3,)))

    assert overview.has_uploaded


def test_a_run_that_no_card_went_out_for_is_of_no_agreement(founded):
    end_run(founded.vault(1), founded.run)

    (overview,) = run_overviews(Place.read(founded.vault(1)))

    assert RunFiles(founded.vault(1), founded.run).agreement() is None
    assert not overview.is_pinned
    assert not overview.has_uploaded


def test_an_open_run_of_another_agreement_can_be_ended(started):
    pin_shrunk_roster(started, 1, left=(3,))

    assert open_runs(started.vault(1)) == [started.run]
    end_run(started.vault(1), started.run)
    assert open_runs(started.vault(1)) == []


def test_a_run_of_another_roster_is_not_released(summed):
    summed.close(1)
    place = pin_shrunk_roster(summed, 1, left=(3,))

    with pytest.raises(ConfigurationError, match="0 runs"):
        releasable_model(place)
