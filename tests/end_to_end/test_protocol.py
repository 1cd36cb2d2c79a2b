"""The protocol, message by message: three hospitals learn one model over a provider that can read none of it.

The provider's side is what `strategies` runs, the hospitals' what `clients` runs; between them there are only bytes.
"""

from __future__ import annotations

import os
import struct
from dataclasses import replace

import numpy as np
import pytest

from clients.data.table_file import read_table
from clients.learning.learner import Learner
from clients.run.files import RunFiles
from clients.run.membership import TABLE
from clients.run.site import Site
from protocol.agreement import Agreement
from protocol.envelope import Request, pack_list, unpack_list
from protocol.handshake import RunCard, Session
from protocol.notes import NoteKind, SiteNote, UploadCall
from protocol.packing import RoundKind
from protocol.rounds import RoundTerms
from scripts.simulation.twin import plaintext_models
from strategies.round_sum import RoundSum


@pytest.fixture
def consortium(found, founded_once):
    """Three hospitals that have pinned their agreement: one round of training between statistics and evaluation."""
    experiment = founded_once.experiment
    return found(
        replace(
            experiment,
            strategy=replace(experiment.strategy, rounds=1),
            federation=replace(experiment.federation, sites=3),
        )
    )


def test_three_hospitals_learn_one_model_message_by_message(consortium):
    hospitals = [Site.of(consortium.vault(position)) for position in range(3)]
    run = os.urandom(16)

    # 1. ANNOUNCE. The provider makes up a run's id. Each hospital answers with a fresh key that it signed for this
    #    run, and with the agreement that it pinned.
    announced = [hospital.handle(Request.ANNOUNCE, {"run": run}) for hospital in hospitals]
    assert len({answer["agreement"] for answer in announced}) == 1
    agreement = Agreement.from_bytes(announced[0]["agreement"])
    cards = [RunCard.from_bytes(answer["card"], agreement, run) for answer in announced]
    session = Session.of(cards, agreement)
    assert [agreement.round_kind(number) for number in range(3)] == [
        RoundKind.STATISTICS,
        RoundKind.TRAIN,
        RoundKind.EVALUATE,
    ]

    # 2. ENTRUST. The first hospital of the session, its steward, gets all cards. It draws the epoch secret, from which
    #    the CKKS key follows, and seals it to each of the others.
    steward, *others = hospitals
    entrusted = steward.handle(Request.ENTRUST, {"run": run, "session": session.to_bytes()})
    secrets = unpack_list(entrusted["secrets"], limit=2)

    # 3. OPEN. Each of the others gets the cards and what was sealed to it. Now they share keys; the provider, which
    #    carried everything, shares none.
    for hospital, secret in zip(others, secrets, strict=True):
        assert hospital.handle(Request.OPEN, {"run": run, "session": session.to_bytes(), "secret": secret}) == {}

    # For comparison, the same learning without any of this: integers added in the clear.
    learners = [
        Learner(
            terms=agreement.terms,
            parameters=agreement.parameters,
            table=read_table(consortium.vault(position).path(TABLE), agreement.terms.data),
            site=agreement.roster[position].name,
        )
        for position in range(3)
    ]
    plain = learners[0].initial_state()

    sums: list[bytes] = []
    for number in range(agreement.last_round + 1):
        # 4. PREPARE. The last sum goes down. Each hospital checks it to the last tag, decrypts it, moves its model,
        #    trains, and says that it is ready, in which state it is (as a MAC), and nothing else.
        prepare = {"run": run, "round": struct.pack("<I", number), "history": pack_list(sums[-1:])}
        notes = [
            SiteNote.from_bytes(
                hospital.handle(Request.PREPARE, prepare)["note"],
                kind=NoteKind.READY,
                agreement=agreement,
                session=session.digest,
                round_number=number,
            )
            for hospital in hospitals
        ]
        assert len({note.state for note in notes}) == 1

        # 5. UPLOAD. The provider names the cohort, among those who are ready. Each of it sends one update: encrypted,
        #    masked, tagged, signed. It will never send another one from this state.
        cohort = tuple(note.site for note in notes)
        call = {"run": run, "call": UploadCall(round=number, cohort=cohort).to_bytes()}
        updates = [hospital.handle(Request.UPLOAD, call)["update"] for hospital in hospitals]

        # 6. The provider adds. The masks cancel; what is left is encrypted under a key that it does not have.
        total = RoundSum(
            RoundTerms(
                agreement=agreement,
                session=session.digest,
                epoch=1,
                round=number,
                cohort=cohort,
                state=notes[0].state,
            )
        )
        for update in updates:
            total.add(update)
        sums.append(total.close().to_bytes())

        # In the clear, the same round is three lines. Before this round's sum, all are where the twin is, bit for bit.
        for hospital in hospitals:
            position = RunFiles(hospital.membership.vault, run).position()
            if position is not None:
                assert position.learner.shared_digest() == plain.shared_digest()
        kind = agreement.round_kind(number)
        contributions = [
            learner.contribution(plain, learner.initial_personal(), kind, number).packed for learner in learners
        ]
        packed = np.sum(contributions, axis=0)
        plain = learners[0].apply(plain, kind, packed)

    # 7. CLOSE. The last sum goes down. Each hospital writes its models and results, deletes every key of the run, and
    #    says in which state it ends.
    closing = {"run": run, "history": pack_list(sums[-1:])}
    closed = [
        SiteNote.from_bytes(
            hospital.handle(Request.CLOSE, closing)["note"],
            kind=NoteKind.CLOSED,
            agreement=agreement,
            session=session.digest,
            round_number=agreement.last_round + 1,
        )
        for hospital in hospitals
    ]

    # All hospitals end in one state, with one model: the twin's, to the last bit.
    assert len({note.state for note in closed}) == 1
    positions = [RunFiles(hospital.membership.vault, run).position() for hospital in hospitals]
    assert len({position.state for position in positions}) == 1
    assert {position.learner.shared_digest() for position in positions} == {plain.shared_digest()}
    assert len({hospital.membership.vault.read("models/last.safetensors") for hospital in hospitals}) == 1
    assert all(np.array_equal(consortium.values(position), plain.model) for position in range(3))
    # And it has learnt something.
    assert not np.array_equal(plain.model, learners[0].initial_state().model)
    assert plain.federated.records == sum(learner.held_out_table.records for learner in learners)


def test_the_same_over_flower_ends_in_the_plaintext_twin_s_model_bit_for_bit(run, founded):
    run(founded)

    twins = plaintext_models(founded.directory)

    for position in founded.everyone:
        assert np.array_equal(founded.values(position), twins[founded.member(position).name])
