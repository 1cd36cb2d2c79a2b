"""CKKS through SEAL: the consortium's secret key, encryption of integer vectors, decryption of their sum.

Trust: runs at the site. The secret key exists here, in memory, for as long as a message is handled.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt
import tenseal.sealapi as seal

from protocol.backend import backend, make_context
from protocol.embedding import canonical_embedding
from protocol.errors import ResidualError, SecretMaterialError
from protocol.packing import Integers
from protocol.parameters import NOISE_BOUND, NOISE_RMS_BOUND, SEED_BYTES, CkksParameters
from protocol.residues import Residues, residue_type
from protocol.scratch_file import ScratchFile
from protocol.seal_format import split_seeded

KEY_SEED_BYTES = 64
_CHUNK = 64  # ciphertexts whose slots are held in memory at once


class SecretKey:
    """The consortium's CKKS key. It cannot be printed, copied, pickled or sent."""

    __slots__ = ("_key", "parameters")

    def __init__(self, key: seal.SecretKey, parameters: CkksParameters) -> None:
        self._key = key
        self.parameters = parameters

    @classmethod
    def from_seed(cls, seed: bytes, parameters: CkksParameters) -> Self:
        """Derive the key that every site derives from the same seed.

        The seeded context is used for the key generator alone and then dropped: encryption in it would repeat itself.

        Args:
            seed: 64 secret bytes.
            parameters: CKKS parameters.
        """
        factory = seal.Blake2xbPRNGFactory(list(struct.unpack("<8Q", seed)))
        return cls(
            seal.KeyGenerator(make_context(parameters.ring_degree, (parameters.modulus,), factory)).secret_key(),
            parameters,
        )

    def digest(self) -> bytes:
        """Return the SHA-256 of the key's bytes, for the epoch check only; it is itself a secret."""
        with ScratchFile() as scratch:
            self._key.save(scratch.path)
            return hashlib.sha256(scratch.read()).digest()

    def __repr__(self) -> str:
        return "SecretKey(<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise SecretMaterialError("a CKKS secret key must not leave its process")


class Encryptor:
    """Encrypts integer vectors under the consortium's key, freshly randomised.

    Args:
        key: The secret key: symmetric ciphertexts are half as large as public-key ones.
    """

    def __init__(self, key: SecretKey) -> None:
        self._parameters = key.parameters
        self._backend = backend(key.parameters)
        self._encryptor = seal.Encryptor(self._backend.context, key._key)

    def encrypt(self, packed: Integers) -> tuple[Residues, bytes]:
        """Encrypt grid integers.

        Args:
            packed: Shape (ciphertexts, N), each at most `site_limit` in size.

        Returns:
            First polynomials, shape (ciphertexts, N), and the seeds of the second ones, 64 bytes each.
        """
        parameters, encoder, parms_id = self._parameters, self._backend.encoder, self._backend.parms_id
        residues: Residues = np.empty(packed.shape, dtype=residue_type(parameters.modulus_bits))
        seeds = []
        plaintext = seal.Plaintext()
        embedding = canonical_embedding(parameters.ring_degree)
        with ScratchFile() as scratch:
            for start in range(0, len(packed), _CHUNK):
                for offset, slots in enumerate(embedding.slots(packed[start : start + _CHUNK])):
                    encoder.encode(slots.tolist(), parms_id, parameters.scale, plaintext)
                    self._encryptor.encrypt_symmetric(plaintext).save(scratch.path)
                    residues[start + offset], seed = split_seeded(scratch.read(), parameters.ring_degree)
                    seeds.append(seed)
        return residues, b"".join(seeds)


class Decryptor:
    """Decrypts sums. Only `clients.secrets.release` may call it, after the sum's tags held.

    Args:
        key: The secret key.
    """

    def __init__(self, key: SecretKey) -> None:
        self._parameters = key.parameters
        self._backend = backend(key.parameters)
        self._decryptor = seal.Decryptor(self._backend.context, key._key)

    def decrypt(self, residues: Residues, seeds: Sequence[bytes]) -> Integers:
        """Decrypt a seeded sum to its exact integers.

        Args:
            residues: Sum of the first polynomials, shape (ciphertexts, N).
            seeds: For each site its seeds, ciphertexts * 64 bytes.

        Returns:
            int64, shape (ciphertexts, N).

        Raises:
            ResidualError: The noise is larger than honest ciphertexts can carry.
        """
        with ScratchFile() as scratch:
            ciphertexts = (self._load_seeded(first, seeds, row, scratch) for row, first in enumerate(residues))
            return self._read(ciphertexts, len(seeds))

    def decrypt_expanded(self, first: Residues, second: Residues, *, sites: int) -> Integers:
        """Decrypt an expanded sum to its exact integers.

        Args:
            first: Sum of the first polynomials, shape (ciphertexts, N).
            second: Sum of the second polynomials, same shape.
            sites: Number of sites in the sum.

        Returns:
            int64, shape (ciphertexts, N).

        Raises:
            ResidualError: The noise is larger than honest ciphertexts can carry.
        """
        backend = self._backend
        with ScratchFile() as scratch:
            ciphertexts = (
                backend.load(scratch.write(backend.layout.expanded(*polynomials)))
                for polynomials in zip(first, second, strict=True)
            )
            return self._read(ciphertexts, sites)

    def _load_seeded(self, first: Residues, seeds: Sequence[bytes], row: int, scratch: ScratchFile) -> seal.Ciphertext:
        backend = self._backend
        row_seeds = [of_site[row * SEED_BYTES : (row + 1) * SEED_BYTES] for of_site in seeds]
        total = backend.load(scratch.write(backend.layout.seeded(first, row_seeds[0])))
        for seed in row_seeds[1:]:
            backend.evaluator.add_inplace(total, backend.load_uniform(seed, scratch))
        return total

    def _read(self, ciphertexts: Iterator[seal.Ciphertext], sites: int) -> Integers:
        embedding = canonical_embedding(self._parameters.ring_degree)
        exact = []
        while slots := [self._slots_of(ciphertext) for ciphertext in islice(ciphertexts, _CHUNK)]:
            coefficients = embedding.coefficients(np.array(slots))
            rounded = np.rint(coefficients)
            self._check_noise(coefficients - rounded, sites)
            exact.append(rounded.astype(np.int64))
        return np.concatenate(exact)

    def _slots_of(self, ciphertext: seal.Ciphertext) -> list[complex]:
        plaintext = seal.Plaintext()
        self._decryptor.decrypt(ciphertext, plaintext)
        slots: list[complex] = self._backend.encoder.decode_complex(plaintext)
        return slots

    def _check_noise(self, fractions: npt.NDArray[np.float64], sites: int) -> None:
        noise = fractions * self._parameters.scale
        # a sixteenth of a unit for the floating-point error of the transforms
        if np.abs(noise).max() > NOISE_BOUND * sites + 1 / 16:
            raise ResidualError("largest noise of the sum", expected="within the bound", got="above it")
        if np.sqrt(np.mean(noise**2, axis=1)).max() > NOISE_RMS_BOUND * np.sqrt(sites):
            raise ResidualError("noise level of the sum", expected="within the bound", got="above it")
