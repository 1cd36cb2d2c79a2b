"""Who sees everything: every vault, every message, every decryption; and checks after each message what must hold.

Trust: tests only; it holds all secrets, to look for them in what leaves.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from misbehaviour.hospital import Fingerprint, Hospital, Killed, Strike, fingerprint
from misbehaviour.schedule import SITES
from misbehaviour.view import Parts, RunView, parsed_update

import clients.rounds
from clients.ckks import Decryptor, SecretKey
from clients.keys import EpochKeys
from protocol.agreement import Agreement, Cohort
from protocol.envelope import Request, unpack_list
from protocol.errors import FederationError, ResidualError
from protocol.handshake import Session
from protocol.notes import UploadCall
from protocol.rounds import HEADER_BYTES, UpdateHeader
from protocol.schedule import digest, expand

_LOG = {"events.jsonl", ".lock"}
_AFTER_A_SUM = {"position.safetensors", "pending.safetensors", "upload.bin"}
_TRIES = "tries.json"
_SECRET_FILES = ("ephemeral.secret", "epoch.secret")


class Violation(AssertionError):  # noqa: N818 - it is no error of the product's
    """Something that must never happen has happened."""


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
    """

    site: int
    run: bytes
    has_released: bool = False
    has_refused_sum: bool = False


class Observer:
    """Watches the sites of one schedule.

    Args:
        agreement: The sites' agreement.
        hospitals: The sites.
        main: The run before the schedule.
        other: The agreement's other run, before the schedule.

    Attributes:
        hospitals: The sites.
        refusals: Site -> names of the errors with which it has refused.
        sites_led_apart: How often two sites stood in different states after sums over disjoint cohorts.
    """

    def __init__(self, agreement: Agreement, hospitals: Sequence[Hospital], main: RunView, other: RunView) -> None:
        self.hospitals = hospitals
        self.refusals: dict[int, list[str]] = defaultdict(list)
        self.sites_led_apart = 0
        self._agreement = agreement
        self._handling: list[Handling] = []
        self._prints: list[Fingerprint] = []
        self._sent: dict[bytes, SentUpdate] = {}
        self._bytes_by_state: dict[tuple[object, ...], str] = {}
        self._model_by_state: dict[bytes, bytes] = {}
        self._positions: dict[tuple[int, bytes], tuple[int, bytes]] = {}
        self._applied: dict[tuple[int, bytes], dict[int, Cohort]] = defaultdict(dict)
        self._tries: Counter[tuple[int, bytes]] = Counter()
        self._sessions: dict[tuple[int, bytes], bytes] = {}
        self._secrets = [self._lasting_secrets(hospital) for hospital in hospitals]
        for view in (main, other):
            for site in range(len(hospitals)):
                self._note_secrets(site, view.run)
                self._applied[site, view.run] = {n: cohort for n, (cohort, _) in enumerate(view.chain(site))}
            for (_, cohort), uploads in view.uploads.items():
                for site, update in uploads.items():
                    self._note_update(site, update, cohort)
        for site in range(len(hospitals)):
            self._check_position(site, main.run)

    def starting_from(self, prints: Sequence[Fingerprint]) -> Observer:
        """Return an observer who knows the same, to watch another schedule on vaults with these fingerprints."""
        other = copy(self)
        for name, value in vars(self).items():
            setattr(other, name, copy(value))
        other._applied = defaultdict(dict, {place: dict(cohorts) for place, cohorts in self._applied.items()})
        other._secrets = [set(secrets) for secrets in self._secrets]
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
        if request in {Request.ANNOUNCE, Request.ENTRUST, Request.OPEN}:
            self._note_secrets(site, run)
        if answer is not None:
            self._check_answer(site, request, parts, answer)
        position = f"runs/{run.hex()}/position.safetensors"
        if after.get(position) != before.get(position):
            self._check_position(site, run)
        return answer

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
        self._applied[handling.site, handling.run][round_number] = cohort
        self._tries[handling.site, handling.run] = 0

    def sum_refused(self) -> None:
        """Take note that a site has checked a sum and found it wrong."""
        self._handling[-1].has_refused_sum = True

    # invariants

    def _check_answer(self, site: int, request: Request, parts: Parts, answer: Parts) -> None:
        text = b"".join(answer.values())
        if any(secret in text for secret in self._secrets[site]):
            raise Violation(f"a secret of site {site} leaves in its answer to {request}")
        for session in _sessions_named(request, answer):
            if self._sessions.setdefault((site, parts["run"]), session) != session:
                raise Violation(f"site {site} answers for two sessions of one run")
        if request is Request.UPLOAD:
            self._note_update(site, answer["update"], UploadCall.from_bytes(parts["call"]).cohort)

    def _note_update(self, site: int, update: bytes, cohort: Cohort) -> None:
        sha256 = hashlib.sha256(update).hexdigest()
        if sha256 in self._bytes_by_state.values():
            return
        parsed = parsed_update(update, cohort, self._agreement)
        header = UpdateHeader.from_bytes(update[:HEADER_BYTES])
        self._sent[parsed.proof.seeds] = SentUpdate(header=header, residues=parsed.residues)
        states = [line["state"] for line in self.hospitals[site].journal() if line["sha256"] == sha256]
        if len(states) != 1:
            raise Violation(f"an update of site {site} stands {len(states)} times in its journal")
        for place in ((site, states[0]), (site, header.session, header.state)):
            if self._bytes_by_state.setdefault(place, sha256) != sha256:
                raise Violation(f"two different updates of site {site} have left for one state")

    def check_journals(self) -> None:
        """Check that no journal has two updates for one state."""
        for site, hospital in enumerate(self.hospitals):
            twice = [
                state for state, count in Counter(line["state"] for line in hospital.journal()).items() if count > 1
            ]
            if twice:
                raise Violation(f"the journal of site {site} has two updates for one state")

    def _check_refusal(self, handling: Handling, before: Fingerprint, after: Fingerprint) -> None:
        site = handling.site
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - _LOG
        # a message that brings a good sum and then asks for the wrong thing leaves the good sum applied
        allowed = {_TRIES} | (_AFTER_A_SUM if handling.has_released else set())
        if any(name.split("/")[-1] not in allowed for name in changed):
            raise Violation(f"site {site} has refused a message, and changed {sorted(changed)}")
        if handling.has_refused_sum:
            place = (site, handling.run)
            self._tries[place] += 1
            if self._tries[place] > clients.rounds.MAX_TRIES:
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
        """Check that two sites in different states come from disjoint cohorts, which a provider can always name."""
        for number in range(round_number):
            cohorts = [set(self._applied[place, run].get(number, ())) for place in (site, peer)]
            if cohorts[0] != cohorts[1]:
                if cohorts[0] & cohorts[1]:
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
        for key in self._epoch_keys(parsed[0].proof.header.session):
            try:
                DECRYPT(Decryptor(key), residues, [update.proof.seeds for update in parsed])
            except ResidualError:
                continue
            raise Violation(f"the updates of {cohort} were made in different states, and their sum can be read")

    # what the observer knows beside

    def _epoch_keys(self, session: bytes) -> Iterable[SecretKey]:
        for hospital in self.hospitals:
            for path in hospital.vault.directory.glob("runs/*/session.bin"):
                files = hospital.files(bytes.fromhex(path.parent.name))
                parsed = Session.from_bytes(path.read_bytes(), self._agreement, bytes.fromhex(path.parent.name))
                if parsed.digest == session and path.with_name("epoch.secret").exists():
                    yield EpochKeys(files.epoch()[1], self._agreement, session).ckks
                    return

    def _lasting_secrets(self, hospital: Hospital) -> set[bytes]:
        member = hospital.membership
        identity = member.identity.to_secret().reveal()
        return {identity[:32], identity[32:], member.consortium_secret.reveal()}

    def _note_secrets(self, site: int, run: bytes) -> None:
        directory = self.hospitals[site].vault.directory / "runs" / run.hex()
        for name in _SECRET_FILES:
            if (directory / name).exists():
                secret = (directory / name).read_bytes()[-32:]
                if secret not in self._secrets[site]:
                    self._secrets[site] |= {secret, expand(secret, "group"), expand(secret, "ckks", length=64)}


DECRYPT = Decryptor.decrypt
"""The product's, without a spy."""


def _sessions_named(request: Request, answer: Parts) -> list[bytes]:
    """Return the sessions' digests that an answer is bound to, by their places in the wire formats."""
    match request:
        case Request.ENTRUST:
            return [secret[44:76] for secret in unpack_list(answer["secrets"], limit=SITES)]
        case Request.PREPARE | Request.CLOSE:
            return [answer["note"][48:80]]
        case Request.UPLOAD:
            return [UpdateHeader.from_bytes(answer["update"][:HEADER_BYTES]).session]
        case _:
            return []
