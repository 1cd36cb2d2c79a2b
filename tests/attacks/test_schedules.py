"""Ten thousand schedules of a provider that misbehaves on purpose, and an observer who sees everything.

Who: an active provider that drops, delays, repeats, reorders and alters messages, tells each site another story, and
whose sites' processes end and start at the worst moments; in some of them one site signs for it that nothing has left;
and people who overrule each other's sites. What must hold after every message: no state has two updates; two updates of
one round differ by sites that were given up; nothing leaves after a void note, and none is signed after something left;
two sums of a round that provider and colluder can read tell no site apart that people have not overruled; nothing is
decrypted but the exact sum of one cohort's updates; one state means one model; a refusal changes nothing but log and
tries; no secret leaves, and none of an epoch that is over is kept; a site answers for one session of a run and to few
wrong sums of a round.

Everything is the product's, with real keys, vaults and ciphertexts, but for the statistics and the training. A failure
prints its seed and operations; `SCHEDULE_SEED=<seed>` in the environment plays that schedule alone.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from misbehaviour.hospital import TinyLearner
from misbehaviour.play import Theatre
from misbehaviour.promises import Violation
from misbehaviour.pure import remember
from misbehaviour.schedule import Fault, Stage, schedule_of

import clients.run.state_chain
import clients.secrets.release
from clients.run.files import RunFiles
from clients.run.opening import Opening
from clients.run.rounds import Rounds
from clients.run.site import Site
from clients.run.upload_journal import UploadJournal
from clients.secrets.keys import EpochSecrets, PairKeys
from protocol.agreement import SiteCard
from protocol.errors import ProtocolError, SecondUploadError
from protocol.handshake import Session
from protocol.notes import SiteNote

SCHEDULES = 10_000
BATCH = 200
FIRST_FEW = 200
FIRST_MANY = 400
FEW_TRIES = 4
MEMORY = Path("/dev/shm")
ONE_SEED = os.environ.get("SCHEDULE_SEED")
BATCHES = (
    [range(int(ONE_SEED), int(ONE_SEED) + 1)]
    if ONE_SEED
    else [range(first, first + BATCH) for first in range(0, SCHEDULES, BATCH)]
)


@pytest.fixture(scope="module")
def theatre():
    """Vaults in memory where the system has a place for that, and a limit of tries that a schedule can reach."""
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        remember(patch)
        patch.setattr(clients.run.state_chain, "MAX_TRIES", FEW_TRIES)
        yield Theatre(Path(directory), patch)


@pytest.mark.parametrize("seeds", BATCHES, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_no_schedule_makes_a_site_break_a_promise(theatre, seeds):
    for seed in seeds:
        theatre.play(schedule_of(seed))


def upload_again_for_another_cohort(patch):
    uploaded = UploadJournal.uploaded

    def forgetful(journal, state, cohort=None):
        try:
            return uploaded(journal, state, cohort)
        except SecondUploadError:
            return None

    patch.setattr(UploadJournal, "uploaded", forgetful)
    patch.setattr(UploadJournal, "first_cohort", lambda journal, state: None)


def release_without_tags(patch):
    patch.setattr(clients.secrets.release, "check_aggregate", lambda *args, **kwargs: None)


def mask_without_state(patch):
    mask_keys = PairKeys.mask_keys
    patch.setattr(PairKeys, "mask_keys", lambda keys, terms, state: mask_keys(keys, terms, b""))


def take_any_session(patch):
    def check(opening, session):
        return Session.from_bytes(session, opening._membership.agreement, opening._run)

    patch.setattr(Opening, "_check_session", check)


def try_without_limit(patch):
    patch.setattr(RunFiles, "tries", lambda files: 0)


def upload_for_any_cohort(patch):
    check_cohort = Rounds._check_cohort

    def forgetful(rounds, cohort, position):
        rounds._files.journal.first_cohort = lambda state: None
        check_cohort(rounds, cohort, position)

    patch.setattr(Rounds, "_check_cohort", forgetful)


def sign_void_after_an_upload(patch):
    handle_void = Rounds.handle_void

    def forgetful(rounds, round_number):
        rounds._files.journal.first_cohort = lambda state: None
        return handle_void(rounds, round_number)

    patch.setattr(Rounds, "handle_void", forgetful)


def upload_after_void(patch):
    patch.setattr(UploadJournal, "has_voided", lambda journal, state: False)


def take_unsigned_notes(patch):
    parse = SiteNote.from_bytes

    def unsigned(data, **expected):
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(SiteCard, "verify", lambda card, signature, message: None)
            return parse(data, **expected)

    patch.setattr(SiteNote, "from_bytes", unsigned)


def upload_in_any_run(patch):
    patch.setattr(UploadJournal, "check_run", lambda journal, state: None)


def count_epochs_only(patch):
    patch.setattr(EpochSecrets, "next", lambda secrets: replace(secrets, epoch=secrets.epoch + 1))


DEFENCES = {
    upload_for_any_cohort: "uploads in one round for",
    sign_void_after_an_upload: "signs that nothing has left in a round, and something has",
    upload_after_void: "in which it has signed that nothing will leave",
    take_unsigned_notes: "and tell them apart by",
    upload_in_any_run: "uploads in two runs for one round",
    count_epochs_only: "still has the secrets of an epoch that is over",
    upload_again_for_another_cohort: "two different updates of site",
    release_without_tags: "a decryption of",
    mask_without_state: "made in different states, and their sum can be read",
    take_any_session: "answers for two sessions of one run",
    try_without_limit: "wrong sums for one round",
}


@pytest.mark.parametrize("switch_off", DEFENCES, ids=lambda switch_off: switch_off.__name__)
def test_with_a_defence_switched_off_one_of_the_first_few_schedules_fails(theatre, monkeypatch, switch_off):
    switch_off(monkeypatch)
    assert any(re.search(DEFENCES[switch_off], violation) for violation in violations(theatre))


def learn_alone(patch):
    apply = TinyLearner.apply
    patch.setattr(
        TinyLearner, "apply", lambda learner, state, kind, total: apply(learner, state, kind, total + learner._site)
    )


def announce_the_identity(patch):
    announce = Site._announce

    def leaky(site, parts):
        return {**announce(site, parts), "leak": b"..." + site.membership.identity.to_secret().reveal()}

    patch.setattr(Site, "_announce", leaky)


def keep_what_was_refused(patch):
    check = Opening._check_session

    def hoarding(opening, session):
        try:
            return check(opening, session)
        except ProtocolError:
            opening._membership.vault.write("refused.bin", session)
            raise

    patch.setattr(Opening, "_check_session", hoarding)


def upload_before_the_journal(patch):
    patch.setattr(UploadJournal, "keep_upload", lambda journal, data, **entry: None)


def refuse_without_a_name(patch):
    def check(opening, session):
        return {}[session]

    patch.setattr(Opening, "_check_session", check)


MISTAKES = {
    learn_alone: "in different states",
    announce_the_identity: "a secret of site",
    keep_what_was_refused: r"has refused a message, and changed \['refused.bin'\]",
    upload_before_the_journal: "stands 0 times in its journal",
    refuse_without_a_name: "without a name: KeyError",
}


@pytest.mark.parametrize("make", MISTAKES, ids=lambda make: make.__name__)
def test_the_observer_notices_a_mistake_within_the_first_few_schedules(theatre, monkeypatch, make):
    make(monkeypatch)
    assert any(re.search(MISTAKES[make], violation) for violation in violations(theatre))


def test_a_violation_tells_the_seed_and_the_operations(theatre, monkeypatch):
    announce_the_identity(monkeypatch)

    head, schedule, *operations = next(violations(theatre)).splitlines()
    seed = int(schedule.removeprefix("schedule ").split(":")[0])
    with pytest.raises(Violation, match=head):
        theatre.play(schedule_of(seed))
    assert len([line for line in operations if "[" in line]) == len(schedule_of(seed).operations)


def test_one_seed_is_one_schedule_and_one_course_of_events(theatre):
    for seed in range(20):
        courses = []
        for _ in range(2):
            theatre.play(schedule_of(seed))
            courses.append(dict(theatre.observer.refusals))
        assert courses[0] == courses[1]


def test_schedules_reach_every_stage_and_fault_and_what_sites_refuse(theatre):
    stages, faults, refusals, completed = Counter(), Counter(), Counter(), 0
    for seed in range(FIRST_FEW):
        schedule = schedule_of(seed)
        stages[schedule.stage] += 1
        faults.update(operation.fault for operation in schedule.operations)
        completed += theatre.play(schedule)
        for names in theatre.observer.refusals.values():
            refusals.update(names)

    assert set(stages) == set(Stage)
    assert set(faults) == set(Fault)
    assert {"TagError", "SecondUploadError", "SessionMismatchError", "CohortError", "SignatureError"} <= set(refusals)
    assert {"StateMismatchError", "RoundMismatchError", "SiteMismatchError"} <= set(refusals)
    assert completed


def test_only_where_two_cohorts_fit_in_can_sites_be_led_apart(theatre):
    """Of 2m sites or more a provider can make two consortia, each with sums of its own; of fewer it cannot.

    What it can do to some sites of fewer is to withhold void notes, and then they cannot go on with the others.
    """
    led_apart = Counter()
    for seed in range(FIRST_FEW):
        schedule = schedule_of(seed)
        theatre.play(schedule)
        led_apart[schedule.smallest_cohort] += theatre.observer.sites_led_apart

    assert led_apart[2] > 0
    assert led_apart[3] == 0


def violations(theatre):
    """Yield the texts of the violations among the first schedules."""
    for seed in range(FIRST_MANY):
        try:
            theatre.play(schedule_of(seed))
        except Violation as violation:
            yield str(violation)
