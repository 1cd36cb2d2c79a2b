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
    """

    def __init__(
        self, agreement: Agreement, observer: Observer, main: RunView, other: RunView, archive: dict[str, list[bytes]]
    ) -> None:
        self.main = main
        self._agreement = agreement
        self._observer = observer
        self._other = other
        self._archive = defaultdict(list, {name: list(values) for name, values in archive.items()})
        self._letters: list[Letter] = []

    def carry_out(self, operation: Operation) -> None:
        """Do one operation of a schedule."""
        rng = random.Random(operation.seed)
        sites = range(SITES) if operation.site == EVERYONE else [operation.site]
        for site in sites:
            view = self._other if operation.other_run else self.main
            request, to = (operation.request, site) if operation.request else view.next_step(site)
            letter = self._write(view, to, request)
            _ACTIONS[operation.fault](self, letter, rng)

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
        known = set(letter.view.sums)
        letter.view.learn(letter.request, letter.site, letter.parts, answer)
        for place in letter.view.sums.keys() - known:
            self._observer.check_mixture(letter.view.uploads[place].values(), place[1])
            self._archive["aggregate"].append(letter.view.sums[place])
        if letter.request is Request.ENTRUST:
            self._archive["secret"] += letter.view.secrets.values()

    def send_next(self, site: int) -> None:
        """Ask honestly for the next step of a site, or of the one that it waits for."""
        request, to = self.main.next_step(site)
        self._send(self._write(self.main, to, request))

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
            wrong = altered({"aggregates": aggregates}, self._agreement, self._archive, rng)
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
            case Request.UPLOAD:
                number = len(view.chain(letter.site)) + rng.choice([0, 0, 0, 0, -1, 1])
                return {"call": UploadCall(round=max(0, number), cohort=_some_sites(rng)).to_bytes()}
            case _:
                sums = [*view.sums.values(), *self._partial_sums(view, rng), *self._archive["aggregate"][-2:]]
                return {"aggregates": pack_list(rng.sample(sums, min(len(sums), rng.choice([0, 1, 1, 2]))))}

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
}


def _some_sites(rng: random.Random) -> Cohort:
    return tuple(sorted(rng.sample(range(SITES), rng.choice([1, 2, 2, 3, 3, 3, 4]))))
