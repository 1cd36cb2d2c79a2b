"""A consortium whose keys, terms and ciphertexts are fixed, so that its messages are the same bytes for ever.

Its residues come from a key stream, not from SEAL: to everybody without the CKKS key, that is what ciphertexts are.

Trust: tests only; every key here is public.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocol.agreement import Agreement, SiteCard
from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms
from protocol.expansion import expand_seeds
from protocol.handshake import RUN_BYTES, RunCard, SealedSecret, Session
from protocol.masks import uniform_residues
from protocol.notes import NoteKind, SiteNote
from protocol.parameters import SEED_BYTES
from protocol.privacy_terms import PrivacyTerms
from protocol.residues import Residues, pack_residues
from protocol.rounds import RoundTerms, UpdateHeader
from protocol.schedule import KEY_BYTES, expand
from protocol.terms import CohortTerms, CryptoTerms, ModelTerms, OptimiserTerms, Terms, TrainingTerms
from protocol.update import EncryptedAggregate, SealedUpdate, UpdateProof, body_checksum, sealed_tag_bytes

SITES = 4
EPOCH = 1
COHORT = (0, 1, 3)
BITS_OF_MODULUS = {24: 13, 32: 21, 40: 29}
"""Modulus bits -> value bits that make the advisor choose it for four sites."""


def fixed_bytes(purpose: str, *fields: int, length: int = KEY_BYTES) -> bytes:
    """Return bytes that depend on purpose and fields alone."""
    return expand(bytes(KEY_BYTES), purpose, *fields, length=length)


def golden(name: str) -> bytes:
    """Return the golden file of that name."""
    return (Path(__file__).parent / f"{name}.bin").read_bytes()


class Consortium:
    """Hospitals in the middle of a run; four, as golden files have them.

    Args:
        value_bits: Wanted exact bits, which choose the modulus.
        hidden: Widths of hidden layers; none for logistic regression.
        sites: Hospitals in the roster.
        epoch_rounds: Rounds of a key epoch; 0 for one epoch.
        clip: Distinguishes one agreement from another with messages of the same lengths.
        run: Distinguishes one run from another.
        largest_seeded_cohort: Sums of more sites than that are expanded.
    """

    def __init__(
        self,
        *,
        value_bits: int = 21,
        hidden: tuple[int, ...] = (),
        sites: int = SITES,
        epoch_rounds: int = 0,
        clip: float = 4.0,
        run: str = "run",
        largest_seeded_cohort: int = 16,
    ) -> None:
        self.signing_keys = [Ed25519PrivateKey.from_private_bytes(fixed_bytes("signing", i)) for i in range(sites)]
        self.run = fixed_bytes(run, length=RUN_BYTES)
        self.agreement = Agreement(
            roster=tuple(
                SiteCard(
                    name=f"hospital-{site + 1:0{len(str(sites))}}",
                    signing_key=key.public_key().public_bytes_raw().hex(),
                    exchange_key=_exchange_key("exchange", site).hex(),
                )
                for site, key in enumerate(self.signing_keys)
            ),
            terms=_terms(
                value_bits=value_bits,
                hidden=hidden,
                epoch_rounds=epoch_rounds,
                clip=clip,
                largest_seeded_cohort=largest_seeded_cohort,
            ),
            code_digest=fixed_bytes("code").hex(),
            secret_digest=fixed_bytes("secret").hex(),
        )

    @cached_property
    def session(self) -> Session:
        """The run cards of all sites."""
        return Session.of([self.card(site) for site in range(len(self.signing_keys))], self.agreement)

    def card(self, site: int) -> RunCard:
        """Return a site's signed run card."""
        unsigned = RunCard(
            site=site,
            run=self.run,
            agreement=self.agreement.digest,
            exchange_key=_exchange_key("ephemeral", site),
            nonce=fixed_bytes("nonce", site),
            signature=b"",
        )
        return replace(unsigned, signature=self.sign(site, unsigned.signed_bytes()))

    def sealed_secret(self, recipient: int, **changes: object) -> SealedSecret:
        """Return the steward's signed message to one site; what is sealed in it is only a stand-in."""
        unsigned = SealedSecret(
            sender=self.session.steward,
            recipient=recipient,
            epoch=EPOCH,
            agreement=self.agreement.digest,
            session=self.session.digest,
            sealed=fixed_bytes("sealed", recipient, length=KEY_BYTES + 16),
            check=fixed_bytes("check"),
            signature=b"",
        )
        changed = replace(unsigned, **changes)
        return replace(changed, signature=self.sign(unsigned.sender, changed.signed_bytes()))

    def note(self, site: int, **changes: object) -> SiteNote:
        """Return a site's signed note that it is ready for round 1."""
        unsigned = SiteNote(
            kind=NoteKind.READY,
            site=site,
            epoch=EPOCH,
            round=1,
            voided=(),
            agreement=self.agreement.digest,
            session=self.session.digest,
            state=fixed_bytes("state", 1),
            signature=b"",
        )
        changed = replace(unsigned, **changes)
        return replace(changed, signature=self.sign(site, changed.signed_bytes()))

    def terms(self, round_number: int = 1, cohort: tuple[int, ...] = COHORT) -> RoundTerms:
        """Return the terms of a round; each round has its own state."""
        return RoundTerms(
            agreement=self.agreement,
            session=self.session.digest,
            epoch=EPOCH,
            round=round_number,
            cohort=cohort,
            state=fixed_bytes("state", round_number),
        )

    def residues(self, terms: RoundTerms, site: int) -> Residues:
        """Return a site's masked residues, shape (ciphertexts, N)."""
        parameters = self.agreement.parameters
        rows, columns = terms.plan.shape
        key = fixed_bytes("residues", terms.round, site)
        flat = uniform_residues(key, count=rows * columns, modulus=parameters.modulus, bits=parameters.modulus_bits)
        return flat.reshape(rows, columns)

    def update(
        self,
        terms: RoundTerms,
        site: int,
        *,
        signer: int | None = None,
        header: UpdateHeader | None = None,
        residues: Residues | None = None,
    ) -> SealedUpdate:
        """Return a site's update with a valid checksum and signature, whatever else was asked to be wrong in it."""
        body = self.residues(terms, site) if residues is None else residues
        unsigned = UpdateProof(
            header=terms.header_of(site) if header is None else header,
            seeds=fixed_bytes("seeds", terms.round, site, length=SEED_BYTES * terms.plan.ciphertexts),
            checksum=body_checksum(pack_residues(body, self.agreement.parameters.residue_bytes)),
            tag=fixed_bytes("tag", terms.round, site, length=sealed_tag_bytes(terms.tag_vectors)),
            signature=b"",
        )
        signature = self.sign(site if signer is None else signer, unsigned.signed_bytes())
        return SealedUpdate(proof=replace(unsigned, signature=signature), residues=body)

    def aggregate(self, terms: RoundTerms) -> EncryptedAggregate:
        """Return the sum of the cohort's updates, added as Python integers."""
        updates = [self.update(terms, site) for site in terms.cohort]
        parameters = self.agreement.parameters
        polynomials = [update.residues.astype(object) for update in updates]
        proofs = [update.proof for update in updates]
        if not terms.is_seeded:
            seconds = [expand_seeds(proof.seeds, parameters).astype(object) for proof in proofs]
            polynomials = [np.concatenate(both) for both in zip(polynomials, seconds, strict=True)]
            proofs = [proof.without_seeds() for proof in proofs]
        return EncryptedAggregate(
            round=terms.round,
            residues=(sum(polynomials) % parameters.modulus).astype(updates[0].residues.dtype),
            proofs=tuple(proofs),
        )

    def sign(self, site: int, message: bytes) -> bytes:
        """Sign as a site."""
        return self.signing_keys[site].sign(message)


def _terms(
    *, value_bits: int, hidden: tuple[int, ...], epoch_rounds: int, clip: float, largest_seeded_cohort: int
) -> Terms:
    # every value is written out, because golden files do not follow when a default changes
    return Terms(
        data=DataTerms(
            name="vectors",
            columns=(
                ColumnTerms(
                    name="age",
                    kind="number",
                    centre=50.0,
                    scale=20.0,
                    minimum=0.0,
                    maximum=120.0,
                    categories=(),
                    reference="",
                    missing=("999",),
                ),
            ),
            label=LabelTerms(name="label", negative=("0",), positive=("1",), positive_above=None, meaning="ill"),
            header=True,
            missing=("?",),
            smallest_count=10,
            folds=4,
            fold=0,
        ),
        model=ModelTerms(kind="mlp" if hidden else "logistic_regression", hidden=hidden, personal=()),
        training=TrainingTerms(
            rounds=2,
            local_epochs=2,
            batch_size=16,
            learning_rate=0.05,
            weight_decay=0.01,
            proximal=0.0,
            clip=clip,
            seed=2026,
            optimiser=OptimiserTerms(
                kind="fedavg", learning_rate=1.0, momentum=0.9, beta_1=0.9, beta_2=0.99, tau=0.001
            ),
        ),
        crypto=CryptoTerms(
            value_bits=value_bits,
            security_bits=128,
            epoch_rounds=epoch_rounds,
            largest_seeded_cohort=largest_seeded_cohort,
        ),
        cohort=CohortTerms(tolerated_colluders=1, smallest_cohort=3),
        privacy=PrivacyTerms(
            smallest_cell=5,
            smallest_records=10,
            smallest_events=5,
            noise_multiplier=0.0,
            clip_norm=1.0,
            delta=1e-5,
        ),
    )


def _exchange_key(purpose: str, site: int) -> bytes:
    return X25519PrivateKey.from_private_bytes(fixed_bytes(purpose, site)).public_key().public_bytes_raw()
