"""Whether a site accepts or refuses an altered sum tells the provider its noise, and with that the whole CKKS key.

Who: the provider alone, without any key. Want: the CKKS key of the consortium, hence all sums.
How: add t to one coefficient; the check of the noise refuses if it goes over the bound, so some five answers tell the
noise of that coefficient exactly. Coefficients that the public packing plan leaves empty then give linear equations
in the key. Related: Chenal, Tang, On key recovery attacks against existing somewhat homomorphic encryption (2014).
Answer: tags are checked before anything is decrypted, so every altered sum is refused alike, and only MAX_TRIES
times. Behind it, a sum whose noise is out of bounds is the last that a site decrypts; the oracle here has neither
defence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import comb

import numpy as np
import pytest
from coalition import Insider, prepare_parts, refusal, stands_at, truth
from forgery import key_polynomial, ring, second_polynomial, shifted, without_tags

import clients.run.state_chain
from clients.run.files import MAX_TRIES, RunFiles
from clients.secrets.release import release
from protocol.envelope import Request
from protocol.errors import ResidualError, TagError
from protocol.parameters import NOISE_BOUND
from protocol.terms import CohortTerms
from protocol.update import EncryptedAggregate

SITES = 2


@pytest.fixture
def pair(found, founded_once):
    """Two hospitals that trust each other, which takes the provider the fewest answers."""
    experiment = founded_once.experiment
    federation = found(
        replace(
            experiment,
            federation=replace(
                experiment.federation, sites=SITES, cohort=CohortTerms(tolerated_colluders=0, smallest_cohort=2)
            ),
        )
    )
    federation.open()
    return federation


@dataclass
class Oracle:
    """A site that says of each sum whether it accepts it, and counts how often it was asked.

    It goes back to before the sum each time, as sites in the same state, or restarted ones, would.
    """

    site: Insider
    aggregate: EncryptedAggregate
    state: bytes
    answers: int = 0

    def accepts(self, residues) -> bool:
        self.answers += 1
        terms = self.site.terms(self.aggregate.round, self.aggregate.cohort, self.state)
        try:
            release(
                replace(self.aggregate, residues=residues),
                terms=terms,
                state=self.state,
                epoch_keys=self.site.epoch_keys,
                own_proof=None,
            )
        except ResidualError:
            return False
        return True


class Provider:
    """Learns the noise of a sum's coefficients, and what they say about the key."""

    def __init__(self, oracle: Oracle) -> None:
        agreement = oracle.site.agreement
        self.parameters = agreement.parameters
        self.ring = ring(self.parameters)
        self.oracle = oracle
        self.used = agreement.plan(agreement.round_kind(oracle.aggregate.round)).values
        self.first = oracle.aggregate.residues[0].astype(np.uint64)
        self.second = second_polynomial([proof.seeds for proof in oracle.aggregate.proofs], self.parameters)

    def product_with_key(self, places) -> np.ndarray:
        """Return coefficients of the second polynomial times the key, at places that hold no data."""
        first = self.ring.centred(self.ring.coefficients(self.first))
        return np.array([self.noise_at(place) - first[place] for place in places]) % self.parameters.modulus

    def noise_at(self, place: int) -> int:
        monomial, bound = self.ring.monomial(place), NOISE_BOUND * SITES
        possible = dict(zip(range(-bound, bound + 1), (comb(2 * bound, k) for k in range(2 * bound + 1)), strict=True))
        while len(possible) > 1:
            middle = _median(possible)
            addend = monomial * np.uint64(bound - middle) % self.ring.modulus
            is_accepted = self.oracle.accepts(((self.first + addend) % self.ring.modulus)[None, :].astype(np.uint32))
            possible = {noise: odds for noise, odds in possible.items() if (noise <= middle) == is_accepted}
        return next(iter(possible))


def _median(odds: dict[int, int]) -> int:
    """Return the value that cuts the odds most evenly into those up to it and those above."""
    below, half = 0, sum(odds.values()) / 2
    values = sorted(odds)
    for value, following in pairwise(values):
        below += odds[value]
        if below + odds[following] / 2 > half:
            return value
    return values[-2]


def solve(matrix, right, modulus: int) -> list[int]:
    """Solve linear equations mod a prime."""
    rows = [[*map(int, row), int(value)] for row, value in zip(matrix, right, strict=True)]
    for column in range(len(rows)):
        pivot = next(index for index in range(column, len(rows)) if rows[index][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], -1, modulus)
        rows[column] = [entry * inverse % modulus for entry in rows[column]]
        for index, row in enumerate(rows):
            if index != column and row[column]:
                rows[index] = [(a - row[column] * b) % modulus for a, b in zip(row, rows[column], strict=True)]
    return [row[-1] for row in rows]


def key_from(statistics: Provider, training: Provider) -> np.ndarray:
    """Return the key's coefficients: most equations come from the first sum, those for its used places from another."""
    ring_, modulus, used = statistics.ring, statistics.parameters.modulus, statistics.used
    known = np.zeros(ring_.degree, dtype=np.int64)
    known[used:] = statistics.product_with_key(range(used, ring_.degree))
    inverse = ring_.inverse(statistics.second)
    ratio = ring_.multiply(training.second, inverse)
    from_known = ring_.coefficients(ring_.multiply(ratio, ring_.values(known))).astype(np.int64)
    of_ratio = ring_.coefficients(ratio).astype(np.int64)
    places = range(training.used, training.used + used)
    # coefficient j of the ratio times X^k, which is minus one where it wraps
    matrix = [[of_ratio[(j - k) % ring_.degree] * (1 if j >= k else -1) for k in range(used)] for j in places]
    unknown = solve(matrix, training.product_with_key(places) - from_known[list(places)], modulus)
    known[:used] = unknown
    return ring_.centred(ring_.coefficients(ring_.multiply(inverse, ring_.values(known))))


def test_without_tags_accepted_and_refused_sums_tell_the_provider_the_whole_key(pair, monkeypatch):
    secrets, oracles, sums = [], [], []
    insider = Insider(pair, 1)
    for _ in range(2):
        pair.prepare_all()
        secrets.append(sum(truth(pair, site) for site in pair.everyone))
        stands = RunFiles(pair.vault(1), pair.run).position()
        state = stands.state if stands else clients.run.rounds.initial_state(pair.agreement.digest)
        sums.append(EncryptedAggregate.from_bytes(pair.sum_up(), pair.agreement))
        oracles.append(Oracle(insider, sums[-1], state))
    without_tags(monkeypatch)
    providers = [Provider(oracle) for oracle in oracles]

    key = key_from(*providers)

    assert set(key.tolist()) == {-1, 0, 1}
    values = providers[0].ring.values(key)
    assert np.array_equal(values, key_polynomial(insider.epoch_keys.ckks))
    for provider, secret in zip(providers, secrets, strict=True):
        plain = provider.first + provider.ring.multiply(provider.second, values)
        read = provider.ring.centred(provider.ring.coefficients(plain % provider.ring.modulus))
        assert np.array_equal(np.rint(read / provider.parameters.scale), secret[0])
    assert sum(oracle.answers for oracle in oracles) > 8 * MAX_TRIES


def test_with_tags_a_sum_is_refused_alike_whether_its_noise_is_in_bounds_or_not(started, grid_of):
    grid, agreement = grid_of(started), started.agreement
    data = started.sum_up()
    monomial = ring(agreement.parameters).monomial(2000)

    for amount in (1, 60, 110):
        altered = shifted(data, agreement, monomial * np.uint64(amount) % np.uint64(agreement.parameters.modulus))
        assert refusal(grid, started, 1, Request.PREPARE, **prepare_parts(2, [altered])) == "TagError"


def test_even_without_tags_the_first_refusal_for_noise_is_a_site_s_last_answer(started, monkeypatch):
    data, before = started.sum_up(), stands_at(started, 1)
    without_tags(monkeypatch)
    monomial, parameters = ring(started.agreement.parameters).monomial(2000), started.agreement.parameters
    altered = shifted(data, started.agreement, monomial * np.uint64(110) % np.uint64(parameters.modulus))

    with pytest.raises(ResidualError):
        started.prepare(1, 2, [altered])

    for answer in (altered, data):
        with pytest.raises(TagError, match="aggregates refused"):
            started.prepare(1, 2, [answer])
    assert stands_at(started, 1) == before


def test_even_refusals_end_after_max_tries(started, grid_of, monkeypatch):
    monkeypatch.setattr(clients.run.state_chain, "MAX_TRIES", 3)
    grid, before = grid_of(started), stands_at(started, 1)
    data = started.sum_up()
    altered = shifted(data, started.agreement, np.ones(2048, dtype=np.uint64))

    for _ in range(3):
        refusal(grid, started, 1, Request.PREPARE, **prepare_parts(2, [altered]))

    assert refusal(grid, started, 1, Request.PREPARE, **prepare_parts(2, [data])) == "TagError"
    assert stands_at(started, 1) == before
    *_, entry = started.vault(1).lines("events.jsonl")
    assert "aggregates refused in this round" in entry["reason"]
