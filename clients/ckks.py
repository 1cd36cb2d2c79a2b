"""CKKS through SEAL: the consortium's secret key, encryption of integer vectors, decryption of their sum.

Trust: runs at the site. The secret key exists here, in memory, for as long as a message is handled.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt
import tenseal.sealapi as seal

from clients.embedding import canonical_embedding
from clients.seal_format import ScratchFile, SeededTemplate, split_seeded
from protocol.errors import BackendError, ResidualError, SecretMaterialError
from protocol.packing import Integers
from protocol.parameters import NOISE_BOUND, NOISE_RMS_BOUND, SEED_BYTES, CkksParameters
from protocol.residues import Residues

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
        return cls(seal.KeyGenerator(_make_context(parameters, factory)).secret_key(), parameters)

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
        dtype = np.uint32 if parameters.residue_bytes <= np.uint32().itemsize else np.uint64
        residues: Residues = np.empty(packed.shape, dtype=dtype)
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
    """Decrypts sums. Only `clients.release` may call it, after the sum's tags held.

    Args:
        key: The secret key.
    """

    def __init__(self, key: SecretKey) -> None:
        self._parameters = key.parameters
        self._backend = backend(key.parameters)
        self._decryptor = seal.Decryptor(self._backend.context, key._key)

    def decrypt(self, residues: Residues, seeds: Sequence[bytes]) -> Integers:
        """Decrypt a sum to its exact integers.

        Args:
            residues: Sum of the first polynomials, shape (ciphertexts, N).
            seeds: For each site its seeds, ciphertexts * 64 bytes.

        Returns:
            int64, shape (ciphertexts, N).

        Raises:
            ResidualError: The noise is larger than honest ciphertexts can carry.
        """
        embedding = canonical_embedding(self._parameters.ring_degree)
        exact = np.empty(residues.shape, dtype=np.int64)
        with ScratchFile() as scratch:
            for start in range(0, len(residues), _CHUNK):
                rows = range(start, min(start + _CHUNK, len(residues)))
                slots = np.array([self._slots_of(residues[row], seeds, row, scratch) for row in rows])
                coefficients = embedding.coefficients(slots)
                rounded = np.rint(coefficients)
                self._check_noise(coefficients - rounded, len(seeds))
                exact[start : start + _CHUNK] = rounded.astype(np.int64)
        return exact

    def _slots_of(self, residues: Residues, seeds: Sequence[bytes], row: int, scratch: ScratchFile) -> list[complex]:
        backend = self._backend
        row_seeds = [of_site[row * SEED_BYTES : (row + 1) * SEED_BYTES] for of_site in seeds]
        total = backend.load(scratch.write(backend.template.build(residues, row_seeds[0])))
        for seed in row_seeds[1:]:
            backend.evaluator.add_inplace(total, backend.load(scratch.write(backend.uniform_prefix + seed)))
        plaintext = seal.Plaintext()
        self._decryptor.decrypt(total, plaintext)
        slots: list[complex] = backend.encoder.decode_complex(plaintext)
        return slots

    def _check_noise(self, fractions: npt.NDArray[np.float64], sites: int) -> None:
        noise = fractions * self._parameters.scale
        # a sixteenth of a unit for the floating-point error of the transforms
        if np.abs(noise).max() > NOISE_BOUND * sites + 1 / 16:
            raise ResidualError("largest noise of the sum", expected="within the bound", got="above it")
        if np.sqrt(np.mean(noise**2, axis=1)).max() > NOISE_RMS_BOUND * np.sqrt(sites):
            raise ResidualError("noise level of the sum", expected="within the bound", got="above it")


class Backend:
    """SEAL's public objects for one parameter set."""

    def __init__(self, parameters: CkksParameters) -> None:
        self.context = _make_context(parameters, None)
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)
        self.parms_id = self.context.first_parms_id()
        self.template = self._learn_template(parameters)
        self.uniform_prefix = self.template.build(np.zeros(parameters.ring_degree, dtype=np.uint64), b"")

    def load(self, path: str) -> seal.Ciphertext:
        """Load a ciphertext that was built here."""
        ciphertext = seal.Ciphertext(self.context)
        ciphertext.load(self.context, path)
        return ciphertext

    def _learn_template(self, parameters: CkksParameters) -> SeededTemplate:
        plaintext = seal.Plaintext()
        zeros = [0j] * (parameters.ring_degree // 2)
        self.encoder.encode(zeros, self.parms_id, parameters.scale, plaintext)
        throwaway = seal.KeyGenerator(self.context).secret_key()
        with ScratchFile() as scratch:
            seal.Encryptor(self.context, throwaway).encrypt_symmetric(plaintext).save(scratch.path)
            return SeededTemplate.of(scratch.read(), parameters.ring_degree)


@lru_cache(maxsize=8)
def backend(parameters: CkksParameters) -> Backend:
    """Return SEAL's objects for a parameter set; they are made once per process."""
    return Backend(parameters)


def _make_context(parameters: CkksParameters, factory: seal.Blake2xbPRNGFactory | None) -> seal.SEALContext:
    moduli = seal.CoeffModulus.Create(parameters.ring_degree, [parameters.modulus_bits])
    if [modulus.value() for modulus in moduli] != [parameters.modulus]:
        raise BackendError(f"SEAL picks another {parameters.modulus_bits}-bit prime than {parameters.modulus}")
    settings = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    settings.set_poly_modulus_degree(parameters.ring_degree)
    settings.set_coeff_modulus(moduli)
    if factory is not None:
        settings.set_random_generator(factory)
    context = seal.SEALContext(settings, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise BackendError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
    return context
