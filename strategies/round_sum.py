"""Add one round's sealed updates into a single encrypted aggregate.

Trust: runs at the provider, which holds no secret key. Whoever decrypts the result sees only a sum, and a sum of too
few would expose its sites; the agreement's smallest cohort prevents that, here and again at every site.
"""

from __future__ import annotations

import numpy as np

from protocol.errors import CohortIncompleteError, DuplicateUpdateError
from protocol.expansion import ExpansionSum
from protocol.residues import ResidueSum
from protocol.rounds import RoundTerms
from protocol.update import EncryptedAggregate, SealedUpdate, UpdateProof


class RoundSum:
    """The running encrypted sum of one round; memory does not grow with the number of sites.

    It is about one update where the cohort is small enough for seeds to be sent on. In larger cohorts the second
    polynomials are added up as well, in SEAL's 64-bit words, and the seeds are forgotten.

    Args:
        terms: What all updates of the round must agree with, fixed before the first one arrives.

    Raises:
        CohortError: The agreement forbids the cohort.
        BackendError: The installed SEAL cannot expand the seeds of a large cohort.
    """

    def __init__(self, terms: RoundTerms) -> None:
        terms.agreement.check_cohort(terms.cohort)
        parameters = terms.agreement.parameters
        self._terms = terms
        self._residues = ResidueSum(parameters.modulus, parameters.modulus_bits, terms.plan.shape)
        self._expansions = None if terms.is_seeded else ExpansionSum(parameters, terms.plan.ciphertexts)
        self._proofs: dict[int, UpdateProof] = {}

    def add(self, data: bytes | bytearray | memoryview) -> int:
        """Check one site's update and add it; a refused update leaves the sum unchanged.

        Args:
            data: The update as it came.

        Returns:
            The roster position of the site it came from.

        Raises:
            SecretMaterialError: The data is an object of SEAL's, which may be a key.
            DuplicateUpdateError: The site is in the sum already.
            ProtocolError: The subclass of the first other check that failed.
        """
        update = SealedUpdate.from_bytes(data, self._terms)
        site = update.proof.header.site
        if site in self._proofs:
            raise DuplicateUpdateError("updates of one site", expected=1, got=2)
        self._residues.add(update.residues)
        if self._expansions is None:
            self._proofs[site] = update.proof
        else:
            self._expansions.add(update.proof.seeds)
            self._proofs[site] = update.proof.without_seeds()
        return site

    @property
    def missing(self) -> tuple[int, ...]:
        """Roster positions of the cohort's sites that are not in the sum yet."""
        return tuple(site for site in self._terms.cohort if site not in self._proofs)

    def close(self) -> EncryptedAggregate:
        """Return the encrypted sum of the whole cohort.

        Raises:
            CohortIncompleteError: A site is missing, so the masks do not cancel; names the missing sites.
        """
        if self.missing:
            raise CohortIncompleteError("sites missing from the sum", expected="none", got=self.missing)
        residues = self._residues.reduce()
        if self._expansions is not None:
            residues = np.concatenate((residues, self._expansions.residues()))
        return EncryptedAggregate(
            round=self._terms.round,
            residues=residues,
            proofs=tuple(self._proofs[site] for site in self._terms.cohort),
        )
