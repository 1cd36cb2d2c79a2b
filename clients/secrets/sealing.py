"""Turn one packed vector into the sealed update that leaves the site.

Encrypt, mask, tag, sign; in this order, so that the tag covers what is really sent. In large cohorts it also covers the
second polynomials, which the provider will expand from the seeds and add up.

Trust: site only. What it returns is safe to hand to anyone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from clients.secrets.ckks import Encryptor
from clients.secrets.identity import Identity
from clients.secrets.keys import ONE_TIME_NONCE, EpochKeys, PairKeys
from protocol.expansion import expand_seeds
from protocol.masks import mask_residues
from protocol.packing import Integers
from protocol.residues import Residues, pack_residues
from protocol.rounds import RoundTerms
from protocol.tags import tag_of, tag_to_bytes, tag_vectors
from protocol.update import SealedUpdate, UpdateProof, body_checksum


def seal_update(
    packed: Integers,
    *,
    terms: RoundTerms,
    state: bytes,
    site: int,
    identity: Identity,
    pair_keys: PairKeys,
    epoch_keys: EpochKeys,
) -> SealedUpdate:
    """Encrypt, mask, tag and sign one site's vector.

    Args:
        packed: Grid integers of the round's plan, shape (ciphertexts, N).
        terms: The round's terms, cohort included.
        state: The state that the masks and tags are bound to.
        site: This site's roster position.
        identity: Signs.
        pair_keys: Masks.
        epoch_keys: Encrypts and tags.
    """
    parameters = terms.agreement.parameters
    residues, seeds = Encryptor(epoch_keys.ckks).encrypt(packed)
    masked = mask_residues(
        residues, pair_keys.mask_keys(terms, state), modulus=parameters.modulus, bits=parameters.modulus_bits
    )
    covered = covered_residues(masked, seeds, terms)
    vectors = tag_vectors(epoch_keys.tag_vectors_key(terms, state), parameters, len(covered))
    unsigned = UpdateProof(
        header=terms.header_of(site),
        seeds=seeds,
        checksum=body_checksum(pack_residues(masked, parameters.residue_bytes)),
        tag=b"",
        signature=b"",
    )
    tag = ChaCha20Poly1305(epoch_keys.tag_seal_key(terms, state, site)).encrypt(
        ONE_TIME_NONCE,
        tag_to_bytes(tag_of(vectors, covered, parameters)) + unsigned.seeds_digest,
        unsigned.header.to_bytes(),
    )
    tagged = replace(unsigned, tag=tag)
    return SealedUpdate(proof=replace(tagged, signature=identity.sign(tagged.signed_bytes())), residues=masked)


def covered_residues(masked: Residues, seeds: bytes, terms: RoundTerms) -> Residues:
    """Return what an update's tag covers, of the round's `sum_shape`.

    Args:
        masked: First polynomials as they are sent, shape (ciphertexts, N).
        seeds: Seeds of the second polynomials.
        terms: The round's terms.
    """
    if terms.is_seeded:
        return masked
    return np.concatenate((masked, expand_seeds(seeds, terms.agreement.parameters)))
