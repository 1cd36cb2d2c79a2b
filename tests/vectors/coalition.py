"""What a provider and the sites that collude with it can compute, and how a site answers them.

Everything is computed with the real keys of the insiders' vaults and with the product's own arithmetic.

Trust: tests only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from flwr.common.serde import recorddict_to_proto
from scipy.stats import chisquare

import clients.run.opening
from clients.run.files import RunFiles
from clients.run.membership import Membership
from clients.run.run_keys import RunKeys
from clients.run.upload_journal import JOURNAL
from clients.secrets.ckks import Decryptor
from clients.secrets.keys import EpochSecrets
from clients.secrets.sealing import seal_update
from clients.secrets.secret import SecretBytes
from protocol.agreement import Cohort
from protocol.envelope import Request, pack_envelope, pack_list, pack_refusal, unpack_list
from protocol.handshake import RUN_BYTES
from protocol.masks import mask_residues
from protocol.notes import NoteKind, SiteNote, UploadCall
from protocol.packing import Integers
from protocol.residues import Residues, ResidueSum
from protocol.rounds import RoundTerms
from protocol.update import EncryptedAggregate, SealedUpdate
from strategies.round_sum import RoundSum

LEAST_LIKELY = 1e-6
"""A chi-square probability below which residues are not uniform; honest ones get there once in a million tests."""

_LOGS = {"events.jsonl", "tries.json", ".lock"}


class Insider:
    """A site of the run that hands all its keys to the provider.

    Args:
        federation: The consortium, with the run opened.
        site: The insider's roster position.
        secrets: An epoch's secrets; None for those in its vault.
    """

    def __init__(self, federation, site: int, secrets: EpochSecrets | None = None) -> None:
        self.member = member = federation.member(site)
        self.site = site
        self.agreement = member.agreement
        self.identity = member.identity
        self.files = RunFiles(member.vault, federation.run)
        self.keys = (
            RunKeys.load(member, federation.run)
            if secrets is None
            else RunKeys(member, federation.parsed_session(), secrets)
        )
        self.epoch_keys, self.pair_keys = self.keys.common, self.keys.pairs

    def terms(self, round_number: int, cohort: Sequence[int], state: bytes) -> RoundTerms:
        """Return the terms of a round that is made in a state."""
        return RoundTerms(
            agreement=self.agreement,
            session=self.keys.session.digest,
            epoch=self.keys.epoch,
            round=round_number,
            cohort=tuple(cohort),
            state=self.epoch_keys.state_mac(state),
        )

    def void_note(self, round_number: int, state: bytes, *, session: bytes | None = None) -> bytes:
        """Sign that nothing of this site has left in the round that began in a state, whether that is true or not."""
        return void_note(self.member, self.keys, round_number, state, session=session)

    def seal(self, packed: Integers, terms: RoundTerms, state: bytes) -> SealedUpdate:
        """Seal any integers as this site's update; there may be as many of them as the insider likes."""
        return seal_update(
            packed,
            terms=terms,
            state=state,
            site=self.site,
            identity=self.identity,
            pair_keys=self.pair_keys,
            epoch_keys=self.epoch_keys,
        )

    def read(self, updates: Sequence[SealedUpdate], residues: Residues | None = None) -> Integers:
        """Decrypt a sum of updates, or other residues with the updates' seeds."""
        total = added(self.agreement, [update.residues for update in updates]) if residues is None else residues
        return Decryptor(self.epoch_keys.ckks).decrypt(total, [update.proof.seeds for update in updates])

    def read_noise(self, *updates: SealedUpdate) -> Integers:
        """Decrypt what does not decode, without the check that says so."""
        with patch.object(Decryptor, "_check_noise"):
            return self.read(updates)

    def read_sum(self, data: bytes) -> Integers:
        """Decrypt a whole cohort's sum."""
        total, decryptor = EncryptedAggregate.from_bytes(data, self.agreement), Decryptor(self.epoch_keys.ckks)
        if self.agreement.is_seeded(len(total.cohort)):
            return decryptor.decrypt(total.residues, [proof.seeds for proof in total.proofs])
        return decryptor.decrypt_expanded(*np.split(total.residues, 2), sites=len(total.cohort))

    def unmask(self, update: SealedUpdate, terms: RoundTerms, state: bytes) -> SealedUpdate:
        """Take off another site's update the mask that it shares with this one."""
        peers = [site for site in terms.cohort if site != self.site]
        shared = dict(zip(peers, self.pair_keys.mask_keys(terms, state).items(), strict=True))
        # what this site would add, the other one has subtracted
        return self._masked(update, dict([shared[update.proof.header.site]]))

    def complete(self, update: SealedUpdate, terms: RoundTerms, state: bytes) -> SealedUpdate:
        """Add this site's masks, so that in a sum of all the others they cancel as if it had uploaded zeros."""
        return self._masked(update, self.pair_keys.mask_keys(terms, state))

    def _masked(self, update: SealedUpdate, keys: dict[bytes, bool]) -> SealedUpdate:
        parameters = self.agreement.parameters
        residues = mask_residues(update.residues, keys, modulus=parameters.modulus, bits=parameters.modulus_bits)
        return replace(update, residues=residues)


def void_note(
    member: Membership, keys: RunKeys, round_number: int, state: bytes, *, session: bytes | None = None
) -> bytes:
    """Sign with a site's keys that nothing of it has left in the round that began in a state."""
    unsigned = SiteNote(
        kind=NoteKind.VOID,
        site=member.site,
        epoch=member.agreement.epoch_of(round_number),
        round=round_number,
        voided=(),
        agreement=member.agreement.digest,
        session=keys.session.digest if session is None else session,
        state=keys.common.state_mac(state),
        signature=b"",
    )
    return replace(unsigned, signature=member.identity.sign(unsigned.signed_bytes())).to_bytes()


def added(agreement, addends: Sequence[Residues]) -> Residues:
    """Add residues mod q."""
    parameters = agreement.parameters
    total = ResidueSum(parameters.modulus, parameters.modulus_bits, addends[0].shape)
    for addend in addends:
        total.add(addend)
    return total.reduce()


def weaken_pairs(monkeypatch, agree: Callable[..., bytes]) -> None:
    """Have sites that open a run agree with each peer on another secret than the product's.

    Args:
        monkeypatch: Puts it back.
        agree: Takes a peer's run card, and by name what `agree_pairs` takes; returns what the two share.
    """

    def agree_pairs(*, session, site, **known):
        return {card.site: SecretBytes(agree(card, site=site, **known)) for card in session.cards if card.site != site}

    monkeypatch.setattr(clients.run.opening, "agree_pairs", agree_pairs)


def truth(federation, site: int) -> Integers:
    """Return what a site is about to contribute, or has contributed, to its round: the secret that attacks are after.

    It is read from the site's own vault, after it has prepared the round.
    """
    files = RunFiles(federation.vault(site), federation.run)
    position = files.position()
    return files.pending(0 if position is None else position.round).packed


def model_fields(agreement, round_number: int, packed: Integers) -> dict[str, list[int]]:
    """Return the integers of a packed vector that change the model, by field; other cohorts go without the rest."""
    plan = agreement.plan(agreement.round_kind(round_number))
    shared = agreement.terms.model.shared_shapes(len(agreement.terms.data.inputs))
    return {name: integers.tolist() for name, integers in plan.unpack(packed).items() if name in shared}


def collect(federation, cohort: Cohort) -> bytes:
    """Ask a cohort for its updates, and add them up; unlike the federation's own sum, leave no trace of it."""
    total = RoundSum(federation.terms(cohort))
    for site in cohort:
        total.add(federation.upload(site, cohort))
    return total.close().to_bytes()


def open_again(federation, cohort: Cohort) -> None:
    """Open one more run of the same agreement, with some of its sites."""
    federation.run, federation.sums = os.urandom(RUN_BYTES), []
    federation.announce()
    federation.session = federation.session_of(*cohort)
    steward, *others = cohort
    sealed = unpack_list(
        federation.ask(steward, Request.ENTRUST, session=federation.session)["secrets"], limit=len(others)
    )
    for site, secret in zip(others, sealed, strict=True):
        federation.ask(site, Request.OPEN, session=federation.session, secret=secret)


def prepare_parts(round_number: int, history: Sequence[bytes]) -> dict[str, bytes]:
    """Return the parts of a request to prepare a round."""
    return {"round": struct.pack("<I", round_number), "history": pack_list(history)}


def void_parts(round_number: int) -> dict[str, bytes]:
    """Return the parts of a request to give a round's upload up."""
    return {"round": struct.pack("<I", round_number)}


def call_parts(round_number: int, cohort: Sequence[int]) -> dict[str, bytes]:
    """Return the parts of a request to upload."""
    return {"call": UploadCall(round=round_number, cohort=tuple(cohort)).to_bytes()}


def refusal(grid, federation, position: int, request: Request, **parts: bytes) -> str:
    """Send a request that must be refused through the real ClientApp, and return why, from the site's own log.

    The provider must get the public refusal and nothing else; nothing is decrypted; nothing in the vault changes but
    the log and the count of refused sums.
    """
    before = _contents(federation, position)
    message = Message(pack_envelope({"run": federation.run, **parts}), dst_node_id=100 + position, message_type=request)
    with patch.object(Decryptor, "decrypt") as decrypt, patch.object(Decryptor, "decrypt_expanded") as expanded:
        (reply,) = grid.send_and_receive([message])
    assert not reply.has_error()
    assert _bytes_of(reply.content) == _bytes_of(pack_refusal())
    assert not decrypt.called
    assert not expanded.called
    assert _contents(federation, position) == before
    *_, entry = federation.vault(position).lines("events.jsonl")
    assert entry["event"] == "refused"
    return entry["error"]


def stands_at(federation, position: int) -> tuple[int, bytes]:
    """Return a site's round and state."""
    stands = RunFiles(federation.vault(position), federation.run).position()
    return stands.round, stands.state


def journal(federation, position: int) -> bytes:
    """Return the record of all that has left a site."""
    return federation.vault(position).read(JOURNAL)


def uniformity(integers: npt.NDArray[np.generic], low: int, high: int, bins: int = 64) -> float:
    """Return the probability of a chi-square statistic as large as this one, if integers are uniform in low..high."""
    counts, _ = np.histogram(integers.astype(np.float64).reshape(-1), bins=bins, range=(low, high))
    assert counts.sum() == integers.size
    return float(chisquare(counts).pvalue)


def uniform_residues_p(agreement, residues: Residues) -> float:
    """Return the probability of residues like these, if they are uniform in Z_q."""
    return uniformity(residues, 0, agreement.parameters.modulus)


def uniform_noise_p(agreement, decrypted: Integers) -> float:
    """Return the probability of integers like these, if they are decryptions of a uniform ciphertext."""
    largest = agreement.parameters.modulus / 2 / agreement.parameters.scale
    return uniformity(decrypted, -largest - 1, largest + 1)


@contextmanager
def put_back(federation, *positions: int):
    """Copy vaults aside, and in the end put them back as they were: a restore from backup."""
    kept = {position: _contents(federation, position, logs=True) for position in positions}
    yield
    for position, contents in kept.items():
        vault = federation.vault(position)
        for path in _files(vault):
            path.unlink()
        for name, data in contents.items():
            vault.write(name, data)


def _files(vault):
    return [path for path in sorted(vault.directory.rglob("*")) if path.is_file()]


def _contents(federation, position: int, *, logs: bool = False) -> dict[str, bytes]:
    vault = federation.vault(position)
    return {
        str(path.relative_to(vault.directory)): path.read_bytes()
        for path in _files(vault)
        if logs or path.name not in _LOGS
    }


def _bytes_of(content) -> bytes:
    return recorddict_to_proto(content).SerializeToString(deterministic=True)
