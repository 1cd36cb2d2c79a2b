"""Who sees everything: every vault, every message, every decryption; and checks after each message what must hold.

Trust: tests only; it holds all secrets, to look for them in what leaves.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from coalition import void_note
from misbehaviour.hospital import Fingerprint, Hospital, Killed, Strike, fingerprint
from misbehaviour.promises import Promises, Upload, Violation
from misbehaviour.schedule import SITES
from misbehaviour.view import Parts, RunView, parsed_update

import clients.run.state_chain
from clients.run.run_keys import RunKeys
from clients.secrets.ckks import KEY_SEED_BYTES, Decryptor, SecretKey
from clients.secrets.keys import EpochKeys, EpochSecrets
from protocol.agreement import FIRST_EPOCH, Agreement, Cohort
from protocol.envelope import Request, unpack_list
from protocol.errors import FederationError, ResidualError
from protocol.handshake import Session
from protocol.notes import UploadCall
from protocol.rounds import HEADER_BYTES, UpdateHeader
from protocol.schedule import digest, expand
from protocol.state import initial_state

_LOG = {"events.jsonl", ".lock"}
_AFTER_A_SUM = {"position.safetensors", "pending.safetensors", "upload.bin"}
_TRIES = "tries.json"
_EPOCH, _RUN_KEY = "epoch.secret", "ephemeral.secret"


@dataclass(frozen=True, slots=True, kw_only=True)
class SentUpdate:
    """An update that has left its site.

    Attributes:
        header: What it says about itself.
        residues: Its masked residues.
    """

    header: UpdateHeader
    residues: np.ndarray


@dataclass(slots=True, kw_only=True)
class Handling:
    """A message that a site is handling.

    Attributes:
        site: The site.
        run: The run that the message names.
        has_released: Whether a sum was released in it.
        has_refused_sum: Whether a sum was checked and found wrong.
        has_taken_note: Whether a void note was taken.
        voided: Sites that were given up in the round whose sum is being applied.
    """

    site: int
    run: bytes
    has_released: bool = False
    has_refused_sum: bool = False
    has_taken_note: bool = False
    voided: Cohort = ()


class Observer:
    """Watches the sites of one schedule.

    Args:
        agreement: The sites' agreement.
        hospitals: The sites.
        main: The run before the schedule.
        other: The agreement's other run, before the schedule.
        first_epochs: Session -> what its sites shared in the first epoch.

    Attributes:
        hospitals: The sites.
        refusals: Site -> names of the errors with which it has refused.
        sites_led_apart: How often two sites stood in different states after sums over disjoint cohorts.
        sites_told_apart: How often they did after they were told of different sites that were given up.
        promises: What sites have uploaded and given up.
    """

    def __init__(
        self,
        agreement: Agreement,
        hospitals: Sequence[Hospital],
        main: RunView,
        other: RunView,
        first_epochs: Mapping[bytes, EpochSecrets],
    ) -> None:
        self.hospitals = hospitals
        self.refusals: dict[int, list[str]] = defaultdict(list)
        self.sites_led_apart = 0
        self.sites_told_apart = 0
        self.promises = Promises(agreement.terms.cohort.tolerated_colluders)
        self._agreement = agreement
        self._handling: list[Handling] = []
        self._prints: list[Fingerprint] = []
        self._sent: dict[bytes, SentUpdate] = {}
        self._bytes_by_state: dict[tuple[object, ...], str] = {}
        self._model_by_state: dict[bytes, bytes] = {}
        self._positions: dict[tuple[int, bytes], tuple[int, bytes]] = {}
        self._applied: dict[tuple[int, bytes], dict[int, tuple[Cohort, Cohort]]] = defaultdict(dict)
        self._first_epochs = dict(first_epochs)
        self._kept: dict[tuple[int, bytes], tuple[int, frozenset[bytes]]] = {}
        self._tries: Counter[tuple[int, bytes]] = Counter()
        self._sessions: dict[tuple[int, bytes], bytes] = {}
        self._secrets = [self._lasting_secrets(hospital) for hospital in hospitals]
        for view in (main, other):
            for site in range(len(hospitals)):
                self._note_secrets(site, view.run)
                self._applied[site, view.run] = {
                    number: (cohort, ()) for number, (cohort, _) in enumerate(view.chain(site))
                }
            for (_, cohort), uploads in view.uploads.items():
                for site, update in uploads.items():
                    self._note_update(site, view.run, update, cohort)
        for site in range(len(hospitals)):
            self._check_position(site, main.run)

    def starting_from(self, prints: Sequence[Fingerprint]) -> Observer:
        """Return an observer who knows the same, to watch another schedule on vaults with these fingerprints."""
        other = copy(self)
        for name, value in vars(self).items():
            setattr(other, name, copy(value))
        other._applied = defaultdict(dict, {place: dict(cohorts) for place, cohorts in self._applied.items()})
        other._secrets = [set(secrets) for secrets in self._secrets]
        other.promises = self.promises.copied()
        other._prints = [dict(of_site) for of_site in prints]
        other.refusals = defaultdict(list)
        return other

    def deliver(self, site: int, request: Request, parts: Parts, strike: Strike | None = None) -> Parts | None:
        """Deliver a request, check everything, and return the answer; None if it was refused or the site was killed.

        Raises:
            Violation: An invariant does not hold any more.
        """
        hospital, run = self.hospitals[site], parts["run"]
        before = self._prints[site]
        answer, is_refused = None, False
        handling = Handling(site=site, run=run)
        self._handling.append(handling)
        try:
            answer = hospital.handle(request, parts, strike)
        except FederationError as error:
            self.refusals[site].append(type(error).__name__)
            is_refused = True
        except Killed:
            hospital.restart()
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"site {site} refuses {request} without a name: {error!r}") from error
        finally:
            self._handling.pop()
        after = self._prints[site] = fingerprint(hospital.vault.directory)
        if is_refused:
            self._check_refusal(handling, before, after)
        kept = [f"runs/{run.hex()}/{name}" for name in (_RUN_KEY, _EPOCH)]
        if any(before.get(name) != after.get(name) for name in kept):
            self._note_secrets(site, run)
        if answer is not None:
            self._check_answer(site, request, parts, answer)
        position = f"runs/{run.hex()}/position.safetensors"
        if after.get(position) != before.get(position):
            self._check_position(site, run)
        return answer

    def overrule(self, site: int, run: bytes, round_number: int, given_up: int) -> None:
        """Have a site's people give up another's upload."""
        hospital = self.hospitals[site]
        try:
            hospital.overrule(run, round_number, self._agreement.roster[given_up].name)
        except FederationError as error:
            self.refusals[site].append(type(error).__name__)
        else:
            self.promises.overruled[site, run, round_number].add(given_up)
        self._prints[site] = fingerprint(hospital.vault.directory)

    def void_note(self, insider: int, run: bytes, round_number: int) -> bytes | None:
        """Return a note of an insider's that nothing of it has left, made with all that its vault holds."""
        files, member = self.hospitals[insider].files(run), self.hospitals[insider].membership
        session = files.session()
        if session is None or not files.has_epoch():
            return None
        keys = RunKeys(member, Session.from_bytes(session, self._agreement, run), files.epoch())
        return void_note(member, keys, round_number, self._round_state(insider, run))

    # what a site's process does, told by the spies

    def decrypting(self, residues: np.ndarray, seeds: Sequence[bytes]) -> None:
        """Take note that a site decrypts; it may decrypt nothing but the sum of one cohort's updates."""
        updates = [self._sent.get(of_site) for of_site in seeds]
        if None in updates:
            raise Violation("a decryption with seeds that no site has sent")
        headers = [update.header for update in updates]
        cohort = tuple(header.site for header in headers)
        if {header.cohort for header in headers} != {digest("cohort", *cohort)} or len(set(cohort)) < len(cohort):
            raise Violation(f"a decryption of updates of {cohort}, which are not one cohort")
        if len(cohort) < self._agreement.terms.cohort.smallest_cohort:
            raise Violation(f"a decryption of a sum over {cohort} only")
        if len({(header.session, header.round, header.state) for header in headers}) != 1:
            raise Violation(f"a decryption of updates of {cohort} from different states")
        exact = sum(update.residues.astype(np.uint64) for update in updates) % self._agreement.parameters.modulus
        if not np.array_equal(exact, residues):
            raise Violation(f"a decryption of something else than the sum of what {cohort} sent")

    def released(self, round_number: int, cohort: Cohort) -> None:
        """Take note that a site has released a sum."""
        handling = self._handling[-1]
        handling.has_released = True
        self._applied[handling.site, handling.run][round_number] = (cohort, handling.voided)
        self._tries[handling.site, handling.run] = 0

    def sum_refused(self) -> None:
        """Take note that a site has checked a sum and found it wrong."""
        self._handling[-1].has_refused_sum = True

    def applying(self, voided: Cohort) -> None:
        """Take note of who was given up in the round whose sum a site is about to check."""
        self._handling[-1].voided = voided

    def note_taken(self) -> None:
        """Take note that a site has taken a void note."""
        self._handling[-1].has_taken_note = True

    # invariants

    def _check_answer(self, site: int, request: Request, parts: Parts, answer: Parts) -> None:
        text = b"".join(answer.values())
        if any(secret in text for secret in self._secrets[site]):
            raise Violation(f"a secret of site {site} leaves in its answer to {request}")
        for session in _sessions_named(request, answer):
            if self._sessions.setdefault((site, parts["run"]), session) != session:
                raise Violation(f"site {site} answers for two sessions of one run")
        if request is Request.VOID:
            self.promises.voided(site, self._round_state(site, parts["run"]).hex())
        if request is Request.UPLOAD:
            self._note_update(site, parts["run"], answer["update"], UploadCall.from_bytes(parts["call"]).cohort)

    def _note_update(self, site: int, run: bytes, update: bytes, cohort: Cohort) -> None:
        sha256 = hashlib.sha256(update).hexdigest()
        if sha256 in self._bytes_by_state.values():
            return
        parsed = parsed_update(update, cohort, self._agreement)
        header = UpdateHeader.from_bytes(update[:HEADER_BYTES])
        self._sent[parsed.proof.seeds] = SentUpdate(header=header, residues=parsed.residues)
        lines = [line for line in self.hospitals[site].journal() if line.get("sha256") == sha256]
        if len(lines) != 1:
            raise Violation(f"an update of site {site} stands {len(lines)} times in its journal")
        for place in ((site, lines[0]["state"]), (site, header.session, header.state)):
            if self._bytes_by_state.setdefault(place, sha256) != sha256:
                raise Violation(f"two different updates of site {site} have left for one state")
        upload = Upload(
            site=site,
            run=run,
            round=header.round,
            round_state=lines[0]["round_state"],
            state=header.state,
            cohort=cohort,
        )
        self.promises.uploaded(upload, self._given_up(upload))

    def _given_up(self, upload: Upload) -> Cohort:
        """Return the sites that an update's site takes as given up; before its second update, nobody asks."""
        if not self.promises.has_uploaded(upload.site, upload.round_state):
            return ()
        position = self.hospitals[upload.site].files(upload.run).position()
        noted = position.voided if position else ()
        return (*noted, *self.promises.overruled[upload.site, upload.run, upload.round])

    def check_journals(self) -> None:
        """Check that no journal has two updates for one state."""
        for site, hospital in enumerate(self.hospitals):
            twice = [
                state
                for state, count in Counter(line.get("state") for line in hospital.journal()).items()
                if state and count > 1
            ]
            if twice:
                raise Violation(f"the journal of site {site} has two updates for one state")

    def _check_refusal(self, handling: Handling, before: Fingerprint, after: Fingerprint) -> None:
        site = handling.site
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - _LOG
        # what a crash kept a site from doing to its keys it does with any message
        changed = {name for name in changed if not (name.endswith(_RUN_KEY) and name not in after)}
        allowed = {_TRIES, _EPOCH}
        # a message that brings a good sum or note and then asks for the wrong thing leaves what was good applied
        if handling.has_released or handling.has_taken_note:
            allowed |= _AFTER_A_SUM
        if any(name.split("/")[-1] not in allowed for name in changed):
            raise Violation(f"site {site} has refused a message, and changed {sorted(changed)}")
        if handling.has_refused_sum:
            place = (site, handling.run)
            self._tries[place] += 1
            if self._tries[place] > clients.run.state_chain.MAX_TRIES:
                raise Violation(f"site {site} has answered to {self._tries[place]} wrong sums for one round")

    def _check_position(self, site: int, run: bytes) -> None:
        position = self.hospitals[site].files(run).position()
        if position is None or self._positions.get((site, run)) == (position.round, position.state):
            return
        model = digest("model", position.learner.shared_digest(), repr(position.members).encode())
        if self._model_by_state.setdefault(position.state, model) != model:
            raise Violation(f"site {site} has another model than a peer in the same state")
        self._positions[site, run] = (position.round, position.state)
        for peer in range(len(self.hospitals)):
            number, state = self._positions.get((peer, run), (-1, b""))
            if number == position.round and state != position.state:
                self._check_led_apart(site, peer, run, number)

    def _check_led_apart(self, site: int, peer: int, run: bytes, round_number: int) -> None:
        """Check that two sites in different states come from disjoint cohorts, or were told of different void notes.

        Both a provider can always do, to sites that it does not want to take part.
        """
        for number in range(round_number):
            applied = [self._applied[place, run].get(number, ((), ())) for place in (site, peer)]
            (cohort, voided), (other_cohort, other_voided) = applied
            if voided != other_voided:
                self.sites_told_apart += 1
                return
            if cohort != other_cohort:
                if set(cohort) & set(other_cohort):
                    break
                self.sites_led_apart += 1
                return
        raise Violation(f"sites {site} and {peer} stand at round {round_number} in different states")

    def check_mixture(self, updates: Iterable[bytes], cohort: Cohort) -> None:
        """Check, with the sites' own key, that a whole cohort's updates from different states add up to nothing."""
        parsed = [parsed_update(update, cohort, self._agreement) for update in updates]
        if len({update.proof.header.state for update in parsed}) == 1:
            return
        residues = sum(update.residues.astype(np.uint64) for update in parsed) % self._agreement.parameters.modulus
        header = parsed[0].proof.header
        try:
            key = self._key(header.session, header.epoch)
            DECRYPT(Decryptor(key), residues, [update.proof.seeds for update in parsed])
        except ResidualError:
            return
        raise Violation(f"the updates of {cohort} were made in different states, and their sum can be read")

    # what the observer knows beside

    def _key(self, session: bytes, epoch: int) -> SecretKey:
        secrets = self._first_epochs[session]
        while secrets.epoch < epoch:
            secrets = secrets.next()
        return EpochKeys(secrets.common, self._agreement, session).ckks

    def _round_state(self, site: int, run: bytes) -> bytes:
        """Return the state that a site's round began in."""
        position = self.hospitals[site].files(run).position()
        return position.state if position else initial_state(self._agreement.digest)

    def _lasting_secrets(self, hospital: Hospital) -> set[bytes]:
        member = hospital.membership
        identity = member.identity.to_secret().reveal()
        return {identity[:32], identity[32:], member.consortium_secret.reveal()}

    def _note_secrets(self, site: int, run: bytes) -> None:
        """Learn the secrets of a site's run, and check that it has deleted those of epochs that are over."""
        hospital, files = self.hospitals[site], self.hospitals[site].files(run)
        if files.has_ephemeral():
            self._secrets[site].add(files.ephemeral().private_bytes_raw())
        session = files.session()
        if session is None or not files.has_epoch():
            return
        secrets = files.epoch()
        if secrets.epoch == FIRST_EPOCH:
            self._first_epochs.setdefault(Session.from_bytes(session, self._agreement, run).digest, secrets)
        seed = secrets.common.reveal()
        kept = {seed, *(secret.reveal() for secret in secrets.pairs.values())}
        self._secrets[site] |= kept | {expand(seed, "group"), expand(seed, "ckks", length=KEY_SEED_BYTES)}
        epoch, before = self._kept.get((site, run), (0, frozenset()))
        self._kept[site, run] = (secrets.epoch, frozenset(kept))
        if secrets.epoch == epoch:
            return
        directory = hospital.vault.directory / "runs" / run.hex()
        on_disk = b"".join(path.read_bytes() for path in directory.iterdir() if path.is_file())
        if any(secret in on_disk for secret in before):
            raise Violation(f"site {site} still has the secrets of an epoch that is over")


DECRYPT = Decryptor.decrypt
"""The product's, without a spy."""


def _sessions_named(request: Request, answer: Parts) -> list[bytes]:
    """Return the sessions' digests that an answer is bound to, by their places in the wire formats."""
    match request:
        case Request.ENTRUST:
            return [secret[44:76] for secret in unpack_list(answer["secrets"], limit=SITES)]
        case Request.PREPARE | Request.VOID | Request.CLOSE:
            return [answer["note"][64:96]]
        case Request.UPLOAD:
            return [UpdateHeader.from_bytes(answer["update"][:HEADER_BYTES]).session]
        case _:
            return []
