"""A provider that misbehaves on purpose: carries out the operations of a schedule.

It keeps every byte that it has seen, sends what it likes to whom it likes, and ends and starts the sites' processes.

Trust: tests only.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from misbehaviour.alteration import altered, renumbered
from misbehaviour.hospital import Killed, Strike
from misbehaviour.observer import Observer
from misbehaviour.schedule import EVERYONE, SITES, Fault, Operation
from misbehaviour.view import Parts, RunView, added

from protocol.agreement import Agreement, Cohort
from protocol.envelope import ROUND_NUMBER, Request, pack_list
from protocol.handshake import RUN_BYTES
from protocol.notes import UploadCall

OFTEN = 8
NOTE_BYTES = 192
_STEPS = 24  # of a vault, in one message
_OPENING = (Request.ANNOUNCE, Request.ENTRUST, Request.OPEN)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Letter:
    """A request on its way to a site."""

    view: RunView
    site: int
    request: Request
    parts: Parts


class Provider:
    """Carries out operations against the sites that an observer watches.

    Args:
        agreement: The sites' agreement.
        observer: Delivers, and checks what comes of it.
        main: What is known of the run.
        other: What is known of another run of the same agreement.
        archive: Part name -> bytes of other consortia and runs, to be mixed in.
        insider: A site whose keys it has; it signs void notes with them.
    """

    def __init__(
        self,
        agreement: Agreement,
        observer: Observer,
        main: RunView,
        other: RunView,
        archive: dict[str, list[bytes]],
        insider: int | None,
    ) -> None:
        self.main = main
        self._agreement = agreement
        self._observer = observer
        self._other = other
        self._insider = insider
        self._archive = defaultdict(list, {name: list(values) for name, values in archive.items()})
        self._letters: list[Letter] = []

    def carry_out(self, operation: Operation) -> None:
        """Do one operation of a schedule."""
        sites = range(SITES) if operation.site == EVERYONE else [operation.site]
        for site in sites:
            view = self._other if operation.other_run else self.main
            request, to = (operation.request, site) if operation.request else view.next_step(site)
            letter = self._write(view, to, request)
            _ACTIONS[operation.fault](self, letter, random.Random(operation.seed))

    def _write(self, view: RunView, site: int, request: Request, parts: Parts | None = None) -> Letter:
        letter = Letter(
            view=view, site=site, request=request, parts=view.message(request, site) if parts is None else parts
        )
        self._letters.append(letter)
        for name, part in letter.parts.items():
            self._archive[name].append(part)
        return letter

    def _send(self, letter: Letter, *, strike: Strike | None = None, is_heard: bool = True) -> None:
        answer = self._observer.deliver(letter.site, letter.request, letter.parts, strike)
        if answer is None or not is_heard or letter.parts["run"] != letter.view.run:
            return
        letter.view.learn(letter.request, letter.site, letter.parts, answer)
        if letter.request is Request.UPLOAD:
            call = UploadCall.from_bytes(letter.parts["call"])
            uploads = letter.view.uploads[call.round, call.cohort]
            if len(uploads) == len(call.cohort):
                self._observer.check_mixture(uploads.values(), call.cohort)
                self._archive["aggregate"].append(added(list(uploads.values()), call.cohort, self._agreement))
        if letter.request is Request.VOID:
            self._archive["aggregate"].append(answer["note"])
        if letter.request is Request.ENTRUST:
            self._archive["secret"] += letter.view.secrets.values()

    def send_next(self, site: int) -> None:
        """Ask honestly for the next step of a site, or of the one that it waits for."""
        request, to = self.main.next_step(site)
        self._send(self._write(self.main, to, request))

    def send_void(self, site: int, round_number: int) -> None:
        """Ask a site honestly to give its upload for a round up."""
        parts = {"run": self.main.run, "round": ROUND_NUMBER.pack(round_number)}
        self._send(self._write(self.main, site, Request.VOID, parts))

    def _honest(self, letter: Letter, rng: random.Random) -> None:
        self._send(letter)

    def _drop_request(self, letter: Letter, rng: random.Random) -> None:
        self._letters.remove(letter)

    def _keep(self, letter: Letter, rng: random.Random) -> None:
        """Leave the letter among those that may be delivered later."""

    def _drop_reply(self, letter: Letter, rng: random.Random) -> None:
        self._send(letter, is_heard=False)

    def _deliver_late(self, letter: Letter, rng: random.Random) -> None:
        old = rng.choice(self._letters)
        if rng.random() < 0.2:  # to a site that it was not meant for
            old = self._write(old.view, letter.site, old.request, old.parts)
        self._send(old)

    def _duplicate(self, letter: Letter, rng: random.Random) -> None:
        self._send(letter)
        self._send(letter)

    def _reorder(self, letter: Letter, rng: random.Random) -> None:
        letters = [letter, self._write(letter.view, letter.site, Request.UPLOAD), rng.choice(self._letters)]
        rng.shuffle(letters)
        for shuffled in letters:
            self._send(shuffled)

    def _alter(self, letter: Letter, rng: random.Random) -> None:
        parts = altered(letter.parts, self._agreement, self._archive, rng)
        self._send(self._write(letter.view, letter.site, letter.request, parts))

    def _alter_often(self, letter: Letter, rng: random.Random) -> None:
        number = letter.view.prepared.get(letter.site, 0)
        known = [data for (of_round, _), data in letter.view.sums.items() if of_round == number]
        if not known:
            known = [renumbered(data, number, self._agreement) for data in letter.view.sums.values()]
        aggregates = pack_list(known[-1:] or self._archive["aggregate"][-1:])
        for _ in range(OFTEN):
            wrong = altered({"history": aggregates}, self._agreement, self._archive, rng)
            parts = {"run": letter.view.run, "round": ROUND_NUMBER.pack(number + 1), **wrong}
            self._send(self._write(letter.view, letter.site, Request.PREPARE, parts))

    def _equivocate(self, letter: Letter, rng: random.Random) -> None:
        request = letter.request
        if request not in _OPENING:
            request = rng.choice([request, Request.UPLOAD, Request.PREPARE])
        letter = self._write(letter.view, letter.site, request)
        self._send(self._write(letter.view, letter.site, request, letter.parts | self._story(letter, rng)))

    def _story(self, letter: Letter, rng: random.Random) -> Parts:
        """Return parts that other sites have not been told."""
        view = letter.view
        match letter.request:
            case Request.ANNOUNCE:
                return {"run": rng.choice([self.main.run, self._other.run, rng.randbytes(RUN_BYTES)])}
            case Request.ENTRUST | Request.OPEN:
                cards = {**view.cards, **dict(rng.sample(sorted(self._other.cards.items()), rng.choice([0, 0, 1])))}
                chosen = [site for site in _some_sites(rng) if site in cards]
                if letter.request is Request.ENTRUST:  # which only its steward is asked, the first
                    chosen = [letter.site, *(site for site in chosen if site > letter.site)]
                    cards.setdefault(letter.site, b"")
                story = {"session": b"".join(cards[site] for site in chosen)}
                self._archive["session"].append(story["session"])
                if letter.request is Request.OPEN:
                    story["secret"] = rng.choice([*view.secrets.values(), *self._archive["secret"], b""])
                return story
            case Request.VOID:
                number = view.prepared.get(letter.site, 0) + rng.choice([-1, 1])
                return {"round": ROUND_NUMBER.pack(max(0, number))}
            case Request.UPLOAD:
                number = len(view.chain(letter.site)) + rng.choice([0, 0, 0, 0, -1, 1])
                return {"call": UploadCall(round=max(0, number), cohort=_some_sites(rng)).to_bytes()}
            case _:
                sums = [*view.sums.values(), *self._partial_sums(view, rng), *self._archive["aggregate"][-2:]]
                sums += [note for notes in view.given_up.values() for note in notes.values() if note is not None]
                return {"history": pack_list(rng.sample(sums, min(len(sums), rng.choice([0, 1, 1, 2]))))}

    def _partial_sums(self, view: RunView, rng: random.Random) -> list[bytes]:
        """Return a sum of some of the updates that came for one cohort."""
        if not view.uploads:
            return []
        (_, cohort), uploads = rng.choice(sorted(view.uploads.items()))
        chosen = rng.sample(sorted(uploads), rng.randint(1, len(uploads)))
        return [added([uploads[site] for site in sorted(chosen)], cohort, self._agreement)]

    def _split(self, letter: Letter, rng: random.Random) -> None:
        number, middle = letter.view.prepared.get(letter.site, 0), SITES // 2
        half: Cohort = tuple(range(middle)) if letter.site < middle else tuple(range(middle, SITES))
        parts = {"run": letter.view.run, "call": UploadCall(round=number, cohort=half).to_bytes()}
        self._send(self._write(letter.view, letter.site, Request.UPLOAD, parts))

    def _give_up(self, letter: Letter, rng: random.Random) -> None:
        self._send(self._write(letter.view, letter.site, Request.VOID))
        self._tell(letter.view, letter.view.prepared.get(letter.site, 0), rng)

    def _falsely_give_up(self, letter: Letter, rng: random.Random) -> None:
        view = letter.view
        number = max(0, view.prepared.get(letter.site, 0) + rng.choice([0, 0, 0, 0, -1, 1]))
        of_insider = self._insider is not None and self._observer.void_note(self._insider, view.run, number)
        if of_insider and rng.random() < 0.5:
            view.given_up.setdefault(number, {})[self._insider] = of_insider
            self._archive["aggregate"].append(of_insider)
            self._tell(view, number, rng)
            return
        notes = [note for notes in view.given_up.values() for note in notes.values() if note is not None]
        note = bytearray(rng.choice([*notes, of_insider or bytes(NOTE_BYTES)]))
        told = range(SITES)
        if rng.random() < 0.6:  # in the name of a site that has signed nothing
            note[6:8] = letter.site.to_bytes(2, "little")
            view.given_up.setdefault(number, {}).setdefault(letter.site, None)
        else:  # of another kind, round, session or state, or with another signature
            place, count = rng.choice([(4, 2), (12, 4), (16, 16), (64, 32), (96, 32), (128, 64)])
            note[place : place + count] = rng.choice([rng.randbytes(count), rng.randrange(4).to_bytes(count, "little")])
            told = [letter.site]
        for site in told:
            parts = {"run": view.run, "round": ROUND_NUMBER.pack(number), "history": pack_list([bytes(note)])}
            self._send(self._write(view, site, Request.PREPARE, parts))

    def _overrule(self, letter: Letter, rng: random.Random) -> None:
        view, deciding = letter.view, [site for site in range(SITES) if site != letter.site]
        if rng.random() < 0.3:
            deciding = rng.sample(deciding, rng.randint(1, len(deciding)))
        for site in deciding:
            number = view.prepared.get(site, 0)
            self._observer.overrule(site, view.run, number, letter.site)
            view.given_up.setdefault(number, {}).setdefault(letter.site, None)

    def _regroup(self, letter: Letter, rng: random.Random) -> None:
        """Call for a cohort that is the same for all sites if their seed is."""
        view = letter.view
        number = max(view.prepared.values(), default=0)
        without = set(view.given_up.get(number, {}))
        if rng.random() < 0.4:
            without.add(rng.randrange(SITES))
        if rng.random() < 0.3:
            without.discard(rng.randrange(SITES))
        cohort = tuple(site for site in range(SITES) if site not in without)
        parts = {"run": view.run, "call": UploadCall(round=number, cohort=cohort).to_bytes()}
        self._send(self._write(view, letter.site, Request.UPLOAD, parts))

    def _tell(self, view: RunView, number: int, rng: random.Random) -> None:
        """Bring all void notes of a round to all other sites, or to some of them."""
        notes = [note for note in view.given_up.get(number, {}).values() if note is not None]
        told = list(range(SITES)) if rng.random() < 0.6 else rng.sample(range(SITES), rng.randint(0, SITES))
        for site in told if notes else ():
            parts = {"run": view.run, "round": ROUND_NUMBER.pack(number), "history": pack_list(notes)}
            self._send(self._write(view, site, Request.PREPARE, parts))

    def _restart(self, letter: Letter, rng: random.Random) -> None:
        self._observer.hospitals[letter.site].restart()
        self._send(letter)

    def _kill(self, letter: Letter, rng: random.Random) -> None:
        steps_left = rng.randrange(_STEPS)

        def strike(tear: Callable[[], None]) -> None:
            nonlocal steps_left
            if not steps_left:
                tear()
                raise Killed
            steps_left -= 1

        self._send(letter, strike=strike)

    def _interleave(self, letter: Letter, rng: random.Random) -> None:
        request, other = letter.view.next_step(rng.randrange(SITES))
        if other == letter.site:
            other = (other + 1) % SITES
        inner = self._write(letter.view, other, request)
        steps_left = rng.randrange(_STEPS)

        def strike(tear: Callable[[], None]) -> None:
            nonlocal steps_left
            steps_left -= 1
            if steps_left == 0:
                self._send(inner)

        self._send(letter, strike=strike)


_ACTIONS: dict[Fault, Callable[[Provider, Letter, random.Random], None]] = {
    Fault.HONEST: Provider._honest,
    Fault.REQUEST_DROPPED: Provider._drop_request,
    Fault.REPLY_DROPPED: Provider._drop_reply,
    Fault.DELAYED: Provider._keep,
    Fault.DELIVERED_LATE: Provider._deliver_late,
    Fault.DUPLICATED: Provider._duplicate,
    Fault.REORDERED: Provider._reorder,
    Fault.ALTERED: Provider._alter,
    Fault.ALTERED_OFTEN: Provider._alter_often,
    Fault.EQUIVOCATED: Provider._equivocate,
    Fault.SPLIT: Provider._split,
    Fault.RESTARTED: Provider._restart,
    Fault.KILLED: Provider._kill,
    Fault.INTERLEAVED: Provider._interleave,
    Fault.GIVEN_UP: Provider._give_up,
    Fault.FALSELY_GIVEN_UP: Provider._falsely_give_up,
    Fault.OVERRULED: Provider._overrule,
    Fault.REGROUPED: Provider._regroup,
}


def _some_sites(rng: random.Random) -> Cohort:
    return tuple(sorted(rng.sample(range(SITES), rng.choice([1, 2, 2, 3, 3, 3, 4]))))
