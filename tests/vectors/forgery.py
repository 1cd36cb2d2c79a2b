"""What a provider can compute without any key: SEAL's transform, the polynomials behind seeds, altered sums.

Trust: tests only. `key_polynomial`, `patients` and what begins with `with` are for the tests themselves: the truth, and
a defence off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

import clients.secrets.release
from clients.data.table import split_table
from clients.data.table_file import read_table
from clients.run.membership import TABLE
from clients.secrets.ckks import SecretKey
from protocol.agreement import Agreement
from protocol.expansion import ExpansionSum
from protocol.parameters import SEED_BYTES, CkksParameters
from protocol.scratch_file import ScratchFile
from protocol.seal_format import _decompress
from protocol.tags import tag_of
from protocol.update import EncryptedAggregate

Polynomial = npt.NDArray[np.uint64]
"""Shape (N,), below q: coefficients, or values at the roots in SEAL's order."""


class Ring:
    """Z_q[X] / (X^N + 1) for a modulus of at most 32 bits, whose products fit 64 bits.

    Args:
        parameters: CKKS parameters.
    """

    def __init__(self, parameters: CkksParameters) -> None:
        self.degree, self.modulus = parameters.ring_degree, np.uint64(parameters.modulus)
        bits = self.degree.bit_length() - 1
        reversed_bits = [int(format(index, f"0{bits}b")[::-1], 2) for index in range(self.degree)]
        self._exponents = 2 * np.array(reversed_bits) + 1
        root, powers = _smallest_root(parameters), [1]
        for _ in range(2 * self.degree - 1):
            powers.append(powers[-1] * root % parameters.modulus)
        self._powers = np.array(powers, dtype=np.uint64)

    def monomial(self, exponent: int) -> Polynomial:
        """Return the values of X^exponent."""
        return self._powers[self._exponents * exponent % (2 * self.degree)]

    def values(self, coefficients: npt.NDArray[np.int64]) -> Polynomial:
        """Return a polynomial's values; coefficients may be negative."""
        table = self._powers[np.outer(self._exponents, np.arange(self.degree)) % (2 * self.degree)]
        reduced = (coefficients % int(self.modulus)).astype(np.uint64)
        return (table * reduced % self.modulus).sum(axis=1) % self.modulus

    def coefficients(self, values: Polynomial) -> Polynomial:
        """Invert `values`."""
        table = self._powers[-np.outer(np.arange(self.degree), self._exponents) % (2 * self.degree)]
        total = (table * values.astype(np.uint64) % self.modulus).sum(axis=1) % self.modulus
        return total * np.uint64(pow(self.degree, -1, int(self.modulus))) % self.modulus

    def centred(self, residues: Polynomial) -> npt.NDArray[np.int64]:
        """Return residues as integers around 0."""
        signed, modulus = residues.astype(np.int64), int(self.modulus)
        return np.where(signed > modulus // 2, signed - modulus, signed)

    def multiply(self, left: Polynomial, right: Polynomial) -> Polynomial:
        """Multiply value by value."""
        return left.astype(np.uint64) * right.astype(np.uint64) % self.modulus

    def inverse(self, values: Polynomial) -> Polynomial:
        """Invert value by value; none may be 0."""
        return np.array([pow(value, -1, int(self.modulus)) for value in values.tolist()], dtype=np.uint64)


@lru_cache(maxsize=2)
def ring(parameters: CkksParameters) -> Ring:
    """Return the ring of a parameter set."""
    return Ring(parameters)


def second_polynomial(seeds: Sequence[bytes], parameters: CkksParameters, row: int = 0) -> Polynomial:
    """Return the values of the second polynomial of a sum's ciphertext, which follows from its public seeds."""
    total = ExpansionSum(parameters, len(seeds[0]) // SEED_BYTES)
    for of_site in seeds:
        total.add(of_site)
    return total.residues()[row].astype(np.uint64)


def key_polynomial(key: SecretKey) -> Polynomial:
    """Return the values of the secret key: the truth that attacks are compared with."""
    with ScratchFile() as scratch:
        key._key.save(scratch.path)
        return np.frombuffer(_decompress(scratch.read())[-8 * key.parameters.ring_degree :], dtype="<u8")


def shifted(data: bytes, agreement: Agreement, shift: npt.NDArray[np.int64] | Polynomial, row: int = 0) -> bytes:
    """Return an aggregate with values added to one of its first polynomials; all that is signed in it stays."""
    aggregate = EncryptedAggregate.from_bytes(data, agreement)
    residues = aggregate.residues.copy()
    residues[row] = (residues[row].astype(np.uint64) + shift.astype(np.uint64)) % np.uint64(
        agreement.parameters.modulus
    )
    return replace(aggregate, residues=residues).to_bytes()


def patients(federation, position: int) -> tuple[int, int]:
    """Return how many patients a site trains on and how many it holds out, from its own table."""
    member = federation.member(position)
    terms = member.agreement.terms
    training, held_out = split_table(
        read_table(member.vault.path(TABLE), terms.data),
        folds=terms.data.folds,
        fold=terms.data.fold,
        seed=terms.training.seed,
        site=member.name,
    )
    return training.records, held_out.records


def without_tags(monkeypatch) -> None:
    """Have sites decrypt whatever sum comes; the check of the noise after that stays."""
    monkeypatch.setattr(clients.secrets.release, "check_aggregate", lambda aggregate, **_: None)


def with_tags_of_first_polynomials_alone(monkeypatch) -> None:
    """Have sites tag, and check, nothing of the second polynomials of a large cohort's sum."""

    def tag_of_first(vectors, residues, parameters):
        covered = residues.copy()
        covered[len(covered) // 2 :] = 0
        return tag_of(vectors, covered, parameters)

    monkeypatch.setattr("clients.secrets.sealing.tag_of", tag_of_first)
    monkeypatch.setattr("clients.secrets.release.tag_of", tag_of_first)


def _smallest_root(parameters: CkksParameters) -> int:
    """Return the smallest primitive 2N-th root of unity, which SEAL's transform uses."""
    degree, modulus = parameters.ring_degree, parameters.modulus
    for base in range(2, modulus):
        root = pow(base, (modulus - 1) // (2 * degree), modulus)
        if pow(root, degree, modulus) == modulus - 1:
            return min(pow(root, power, modulus) for power in range(1, 2 * degree, 2))
    raise AssertionError("a prime that is 1 mod 2N has such roots")
