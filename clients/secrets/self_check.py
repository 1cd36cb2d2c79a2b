"""Prove at start-up that the installed TenSEAL writes the layout, noise and packing that this code is built for.

Trust: runs at the site, on made-up values and keys.
"""

from __future__ import annotations

import os
from functools import lru_cache

import numpy as np

from clients.secrets.ckks import KEY_SEED_BYTES, Decryptor, Encryptor, SecretKey
from protocol.errors import BackendError, ResidualError, ResidueRangeError
from protocol.expansion import ExpansionSum, check_expansion
from protocol.packing import Integers
from protocol.parameters import SEED_BYTES, CkksParameters
from protocol.residues import ResidueSum, check_residues

_PINNED = "install tenseal==0.3.18, the version this release was measured with"


@lru_cache(maxsize=8)
def check_backend(parameters: CkksParameters) -> None:
    """Encrypt, take apart, add, rebuild and decrypt adversarial patterns; once per process and parameter set.

    The sum is rebuilt in both forms, with seeds and with the second polynomials that they expand to.

    Raises:
        BackendError: Something differs; nothing may be encrypted with this installation.
    """
    check_expansion(parameters)
    seed = os.urandom(KEY_SEED_BYTES)
    key, twin = SecretKey.from_seed(seed, parameters), SecretKey.from_seed(seed, parameters)
    if key.digest() != twin.digest():
        raise BackendError(f"SEAL derives different keys from one seed; {_PINNED}")
    patterns = _patterns(parameters)
    encryptor = Encryptor(key)
    total = ResidueSum(parameters.modulus, parameters.modulus_bits, patterns.shape)
    expansions = ExpansionSum(parameters, len(patterns))
    updates = [encryptor.encrypt(patterns) for _ in range(2)]
    if np.array_equal(updates[0][0], updates[1][0]) or updates[0][1] == updates[1][1]:
        raise BackendError(f"SEAL encrypts the same values to the same ciphertext; {_PINNED}")
    if any(len(set(_split(seeds))) != len(patterns) for _, seeds in updates):
        raise BackendError(f"SEAL repeats the seeds of ciphertexts; {_PINNED}")
    try:
        for residues, seeds in updates:
            check_residues(residues, parameters.modulus)
            total.add(residues)
            expansions.add(seeds)
        first, decryptor = total.reduce(), Decryptor(twin)
        sums = [
            decryptor.decrypt(first, [seeds for _, seeds in updates]),
            decryptor.decrypt_expanded(first, expansions.residues(), sites=len(updates)),
        ]
    except ResidualError as error:
        raise BackendError(f"SEAL's noise is larger than expected ({error}); {_PINNED}") from None
    except (ResidueRangeError, RuntimeError) as error:  # the latter is what SEAL raises
        raise BackendError(f"SEAL lays ciphertexts out in another way ({error}); {_PINNED}") from None
    if not all(np.array_equal(exact, 2 * patterns) for exact in sums):
        raise BackendError(f"a sum of two known ciphertexts decrypts to something else; {_PINNED}")


def _patterns(parameters: CkksParameters) -> Integers:
    """Return the coefficient patterns that stress an embedding most, at half of the largest allowed size."""
    degree, limit = parameters.ring_degree, parameters.site_limit // 2
    index = np.arange(degree)
    spike = np.where(index == 1, limit, 0)
    ramp = index * limit // degree
    signs = np.where(np.random.default_rng(1).random(degree) < 0.5, limit, -limit)  # noqa: PLR2004 - a fair coin
    return np.stack([np.full(degree, limit), np.where(index % 2, limit, -limit), spike, ramp, signs]).astype(np.int64)


def _split(seeds: bytes) -> list[bytes]:
    return [seeds[start : start + SEED_BYTES] for start in range(0, len(seeds), SEED_BYTES)]
