"""What a provider knows of one run, and the message that an honest one would send next.

Trust: tests only; nothing in it but what sites have sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from misbehaviour.schedule import SITES

from protocol.agreement import Agreement, Cohort
from protocol.envelope import ROUND_NUMBER, Request, pack_list, unpack_list
from protocol.errors import ProtocolError
from protocol.handshake import CARD_BYTES
from protocol.notes import UploadCall
from protocol.residues import ResidueSum
from protocol.rounds import HEADER_BYTES, RoundTerms, UpdateHeader
from protocol.update import EncryptedAggregate, SealedUpdate
from strategies.round_sum import RoundSum

Parts = dict[str, bytes]


@dataclass(kw_only=True)
class RunView:
    """What a provider knows of one run.

    Attributes:
        agreement: The sites' agreement.
        run: The run's id.
        cards: Site -> its run card.
        session: The session that it tells honest sites about; empty before it is fixed.
        secrets: (session, recipient) -> sealed secret.
        opened: Sites that have said that they share the run's keys.
        prepared: Site -> the round it last said to be ready for.
        cohorts: Round -> the cohort that it has fixed, if not the usual one.
        given_up: Round -> site -> the void note that says so; None for a site that people have overruled.
        states: Site -> what it has said of the state that it uploads in.
        told: Site -> the sites that it takes as given up in the round it prepared last.
        uploads: (round, cohort) -> site -> its last update.
        sums: (round, cohort) -> their sum, once complete and of one state.
        closed: Sites that have closed the run.
    """

    agreement: Agreement
    run: bytes
    cards: dict[int, bytes] = field(default_factory=dict)
    session: bytes = b""
    secrets: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)
    prepared: dict[int, int] = field(default_factory=dict)
    cohorts: dict[int, Cohort] = field(default_factory=dict)
    given_up: dict[int, dict[int, bytes | None]] = field(default_factory=dict)
    states: dict[int, bytes] = field(default_factory=dict)
    told: dict[int, Cohort] = field(default_factory=dict)
    uploads: dict[tuple[int, Cohort], dict[int, bytes]] = field(default_factory=dict)
    sums: dict[tuple[int, Cohort], bytes] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)

    def copied(self) -> RunView:
        """Return the same knowledge, to be added to apart from this one."""
        return replace(
            self,
            cards=dict(self.cards),
            secrets=dict(self.secrets),
            opened=set(self.opened),
            prepared=dict(self.prepared),
            cohorts=dict(self.cohorts),
            given_up={number: dict(notes) for number, notes in self.given_up.items()},
            states=dict(self.states),
            told=dict(self.told),
            uploads={place: dict(updates) for place, updates in self.uploads.items()},
            sums=dict(self.sums),
            closed=set(self.closed),
        )

    @property
    def sites(self) -> Cohort:
        """Sites of the session; all, before there is one."""
        return _sites_of(self.session) or tuple(range(SITES))

    def chain(self, site: int) -> list[tuple[Cohort, bytes]]:
        """Return cohort and sum of each round, as this site is to be told: its own sums, where there are several."""
        chain: list[tuple[Cohort, bytes]] = []
        while known := [cohort for number, cohort in self.sums if number == len(chain)]:
            cohort = min(known, key=lambda cohort: (site not in cohort, cohort))
            chain.append((cohort, self.sums[len(chain), cohort]))
        return chain

    def cohort(self, site: int) -> Cohort:
        """Return the cohort of a site's next round: once it is known, that of the statistics sum; less who gave up."""
        chain = self.chain(site)
        cohort = self.cohorts.get(len(chain)) or (chain[0][0] if chain else self.sites)
        return tuple(other for other in cohort if other not in self.given_up.get(len(chain), {}))

    def history(self, site: int) -> list[bytes]:
        """Return what a site is to be told, as far as it has not said that it knows it: void notes and sums."""
        chain, steps = self.chain(site), []
        for number in range(self.prepared.get(site, 0), len(chain) + 1):
            steps += [note for note in self.given_up.get(number, {}).values() if note is not None]
            steps += [data for _, data in chain[number : number + 1]]
        return steps

    def next_step(self, site: int) -> tuple[Request, int]:
        """Return what is to be asked next, of this site or of the one that it waits for."""
        missing = [other for other in self.sites if other not in self.cards]
        if missing:
            return Request.ANNOUNCE, missing[0]
        self.session = self.session or b"".join(self.cards[other] for other in self.sites)
        steward = self.sites[0]
        if site not in self.sites or not any(session == self.session for session, _ in self.secrets):
            return Request.ENTRUST, steward
        if site != steward and site not in self.opened:
            return Request.OPEN, site
        return self._next_step_of_round(site, len(self.chain(site)))

    def _next_step_of_round(self, site: int, number: int) -> tuple[Request, int]:
        if number > self.agreement.last_round:
            return Request.CLOSE, site
        if not self._is_ready(site, number):
            return Request.PREPARE, site
        cohort = self.cohort(site)
        behind = [
            other for other in cohort if self.prepared.get(other, -1) <= number and not self._is_ready(other, number)
        ]
        if behind:
            return (Request.PREPARE, behind[0]) if behind[0] in self.prepared else self.next_step(behind[0])
        uploads = self.uploads.get((number, cohort), {})
        silent = [
            other
            for other in (site, *cohort)
            if other in cohort and (other not in uploads or header_of(uploads[other]).state != self.states[other])
        ]
        return (Request.UPLOAD, silent[0]) if silent else (Request.PREPARE, site)

    def _is_ready(self, site: int, number: int) -> bool:
        notes = [other for other, note in self.given_up.get(number, {}).items() if note is not None]
        return self.prepared.get(site) == number and set(notes) <= set(self.told[site])

    def message(self, request: Request, site: int) -> Parts:
        """Return the request as an honest provider would make it, as far as this one knows the parts."""
        session = self.session or b"".join(card for _, card in sorted(self.cards.items()))
        number = len(self.chain(site))
        unconfirmed = pack_list(self.history(site))
        content: Mapping[Request, Parts] = {
            Request.ANNOUNCE: {},
            Request.ENTRUST: {"session": session},
            Request.OPEN: {"session": session, "secret": self.secrets.get((session, site), b"")},
            Request.CATCH_UP: {"history": unconfirmed},
            Request.PREPARE: {"round": ROUND_NUMBER.pack(number), "history": unconfirmed},
            Request.UPLOAD: {"call": UploadCall(round=number, cohort=self.cohort(site)).to_bytes()},
            Request.VOID: {"round": ROUND_NUMBER.pack(self.prepared.get(site, 0))},
            Request.CLOSE: {"history": unconfirmed},
        }
        return {"run": self.run, **content[request]}

    def learn(self, request: Request, site: int, parts: Parts, answer: Parts) -> None:
        """Take in what a site has answered."""
        match request:
            case Request.ANNOUNCE:
                self.cards[site] = answer["card"]
            case Request.ENTRUST:
                recipients = [other for other in _sites_of(parts["session"]) if other != site]
                secrets = unpack_list(answer["secrets"], limit=SITES)
                self.secrets |= {(parts["session"], to): secret for to, secret in zip(recipients, secrets, strict=True)}
            case Request.OPEN if parts["session"] == self.session:
                self.opened.add(site)
            case Request.PREPARE:
                (self.prepared[site],) = ROUND_NUMBER.unpack(parts["round"])
                self.told[site], self.states[site] = voided_in(answer["note"]), answer["note"][96:128]
            case Request.VOID:
                (number,) = ROUND_NUMBER.unpack(parts["round"])
                self.given_up.setdefault(number, {})[site] = answer["note"]
            case Request.UPLOAD:
                self._take_update(UploadCall.from_bytes(parts["call"]), site, answer["update"])
            case Request.CLOSE:
                self.closed.add(site)

    def _take_update(self, call: UploadCall, site: int, update: bytes) -> None:
        uploads = self.uploads.setdefault((call.round, call.cohort), {})
        uploads[site] = update
        if len(uploads) == len(call.cohort) and len({header_of(update).state for update in uploads.values()}) == 1:
            self.sums[call.round, call.cohort] = added(list(uploads.values()), call.cohort, self.agreement)


def header_of(update: bytes) -> UpdateHeader:
    """Return an update's header."""
    return UpdateHeader.from_bytes(update[:HEADER_BYTES])


def voided_in(note: bytes) -> Cohort:
    """Return the sites that a note takes as given up; its place in the wire format."""
    bits = int.from_bytes(note[16:32], "little")
    return tuple(site for site in range(SITES) if bits >> site & 1)


@lru_cache(maxsize=512)
def parsed_update(update: bytes, cohort: Cohort, agreement: Agreement) -> SealedUpdate:
    """Parse an update by its own header."""
    return SealedUpdate.from_bytes(update, _terms_of(update, cohort, agreement))


def added(updates: Sequence[bytes], cohort: Cohort, agreement: Agreement) -> bytes:
    """Add updates of one cohort; if the product's sum refuses them, without asking whether they belong together."""
    try:
        total = RoundSum(_terms_of(updates[0], cohort, agreement))
        for update in updates:
            total.add(update)
        return total.close().to_bytes()
    except ProtocolError:
        parsed = [parsed_update(update, cohort, agreement) for update in updates]
        parameters = agreement.parameters
        anything = ResidueSum(parameters.modulus, parameters.modulus_bits, parsed[0].residues.shape)
        for update in parsed:
            anything.add(update.residues)
        return EncryptedAggregate(
            round=parsed[0].proof.header.round,
            residues=anything.reduce(),
            proofs=tuple(sorted((update.proof for update in parsed), key=lambda proof: proof.header.site)),
        ).to_bytes()


def _terms_of(update: bytes, cohort: Cohort, agreement: Agreement) -> RoundTerms:
    header = header_of(update)
    return RoundTerms(
        agreement=agreement,
        session=header.session,
        epoch=header.epoch,
        round=header.round,
        cohort=cohort,
        state=header.state,
    )


def _sites_of(session: bytes) -> Cohort:
    """Return the roster positions on a session's cards."""
    return tuple(session[start + 4] for start in range(0, len(session), CARD_BYTES))
