"""Add one round's sealed updates into a single encrypted aggregate.

Trust: runs at the provider, which holds no secret key. Whoever decrypts the result sees only a sum, and a sum of too
few would expose its sites; the agreement's smallest cohort prevents that, here and again at every site.
"""

from __future__ import annotations

from protocol.errors import CohortIncompleteError, DuplicateUpdateError
from protocol.residues import ResidueSum
from protocol.rounds import RoundTerms
from protocol.update import EncryptedAggregate, SealedUpdate, UpdateProof


class RoundSum:
    """The running encrypted sum of one round; memory is about one update, however many sites there are.

    Args:
        terms: What all updates of the round must agree with, fixed before the first one arrives.

    Raises:
        CohortError: The agreement forbids the cohort.
    """

    def __init__(self, terms: RoundTerms) -> None:
        terms.agreement.check_cohort(terms.cohort)
        parameters = terms.agreement.parameters
        self._terms = terms
        self._residues = ResidueSum(parameters.modulus, parameters.modulus_bits, terms.plan.shape)
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
        self._proofs[site] = update.proof
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
        return EncryptedAggregate(
            round=self._terms.round,
            residues=self._residues.reduce(),
            proofs=tuple(self._proofs[site] for site in self._terms.cohort),
        )
