"""Release an aggregate: check it to the last tag, and only then decrypt it.

The order is the defence. A site that decrypts first and checks afterwards answers questions about its key, one altered
sum at a time.

Trust: site only, and the only place that decrypts.
"""

from __future__ import annotations

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from clients.secrets.ckks import Decryptor
from clients.secrets.keys import ONE_TIME_NONCE, EpochKeys
from protocol.errors import LengthError, RoundMismatchError, TagError
from protocol.packing import Integers
from protocol.rounds import RoundTerms
from protocol.tags import Tag, add_tags, tag_from_bytes, tag_of, tag_vectors
from protocol.update import EncryptedAggregate, UpdateProof


def release(
    aggregate: EncryptedAggregate,
    *,
    terms: RoundTerms,
    state: bytes,
    epoch_keys: EpochKeys,
    own_proof: UpdateProof | None,
) -> Integers:
    """Check an aggregate and decrypt it.

    Args:
        aggregate: Parsed, not yet trusted.
        terms: What this site expects of the round; its cohort is the aggregate's, already found admissible.
        state: The state the updates were made in.
        epoch_keys: Verifies and decrypts.
        own_proof: What this site uploaded for this state, if it did.

    Returns:
        The exact sum of the cohort's integers, shape (ciphertexts, N).

    Raises:
        ProtocolError: Whatever is not exactly the sum of what the cohort signed; nothing was decrypted.
        ResidualError: The tags held but the noise is out of bounds.
    """
    check_aggregate(aggregate, terms=terms, state=state, epoch_keys=epoch_keys, own_proof=own_proof)
    decryptor = Decryptor(epoch_keys.ckks)
    if terms.is_seeded:
        return decryptor.decrypt(aggregate.residues, [proof.seeds for proof in aggregate.proofs])
    first, second = np.split(aggregate.residues, 2)
    return decryptor.decrypt_expanded(first, second, sites=len(aggregate.proofs))


def check_aggregate(
    aggregate: EncryptedAggregate,
    *,
    terms: RoundTerms,
    state: bytes,
    epoch_keys: EpochKeys,
    own_proof: UpdateProof | None,
) -> None:
    """Check signatures, own entry, seeds and tags of an aggregate.

    Raises:
        ProtocolError: The subclass of the first check that failed.
    """
    if aggregate.round != terms.round:
        raise RoundMismatchError("round", expected=terms.round, got=aggregate.round)
    for proof in aggregate.proofs:
        proof.check(terms)
    if aggregate.residues.shape != terms.sum_shape:
        raise LengthError("polynomials of the aggregate", expected=terms.sum_shape, got=aggregate.residues.shape)
    if own_proof is not None and own_proof not in aggregate.proofs:
        raise TagError("own entry in the aggregate", expected="what this site uploaded", got="another, or none")
    tags = [_open_tag(proof, terms=terms, state=state, epoch_keys=epoch_keys) for proof in aggregate.proofs]
    parameters = terms.agreement.parameters
    vectors = tag_vectors(epoch_keys.tag_vectors_key(terms, state), parameters, len(aggregate.residues))
    if add_tags(tags, parameters) != tag_of(vectors, aggregate.residues, parameters):
        raise TagError("tag of the aggregate", expected="the sum of its updates' tags", got="another")


def _open_tag(proof: UpdateProof, *, terms: RoundTerms, state: bytes, epoch_keys: EpochKeys) -> Tag:
    site = proof.header.site
    try:
        opened = ChaCha20Poly1305(epoch_keys.tag_seal_key(terms, state, site)).decrypt(
            ONE_TIME_NONCE, proof.tag, proof.header.to_bytes()
        )
    except InvalidTag:
        raise TagError("sealed tag", expected=f"one by site {site} for this sum", got="another") from None
    seeds_digest = proof.seeds_digest
    if opened[-len(seeds_digest) :] != seeds_digest:
        raise TagError("seeds", expected=f"those that site {site} tagged", got="others")
    return tag_from_bytes(opened[: -len(seeds_digest)])
