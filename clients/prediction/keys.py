"""A prediction key: its owner encrypts and decrypts with it, its public half only encrypts.

It has nothing to do with the keys of training: it is drawn for predictions, and replaced by its owner's decision.

Trust: site only. Devices get the public half.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NoReturn, Self

import numpy as np
import numpy.typing as npt
import tenseal.sealapi as seal

from clients.secrets.secret import SecretBytes
from protocol.backend import make_context
from protocol.embedding import canonical_embedding
from protocol.errors import SecretMaterialError
from protocol.prediction.backend import prediction_backend
from protocol.prediction.messages import PublicKey
from protocol.prediction.parameters import PredictionParameters
from protocol.schedule import expand
from protocol.scratch_file import ScratchFile
from protocol.seal_format import split_seeded

SEED_BYTES: Final = 32
_GENERATOR_SEED = struct.Struct("<8Q")

Slots = npt.NDArray[np.complex128]


class PredictionKey:
    """A client's CKKS key for one parameter set. It cannot be printed, copied, pickled or sent.

    Args:
        seed: 32 secret bytes; the keys of all parameter sets follow from them.
        parameters: Of predictions.
    """

    def __init__(self, seed: SecretBytes, parameters: PredictionParameters) -> None:
        self.parameters = parameters
        raw = expand(seed.reveal(), "prediction-key", parameters.name.encode(), length=_GENERATOR_SEED.size)
        factory = seal.Blake2xbPRNGFactory(list(_GENERATOR_SEED.unpack(raw)))
        # for the key generator alone: encryption in a seeded context would repeat itself
        context = make_context(parameters.ring_degree, parameters.key_primes, factory)
        self._key = seal.KeyGenerator(context).secret_key()
        self._backend = prediction_backend(parameters)
        self._encryptor = seal.Encryptor(self._backend.context, self._key)
        self._decryptor = seal.Decryptor(self._backend.context, self._key)

    @staticmethod
    def draw_seed() -> SecretBytes:
        """Draw the secret of a new key."""
        return SecretBytes(os.urandom(SEED_BYTES))

    @classmethod
    def draw(cls, parameters: PredictionParameters) -> Self:
        """Return a new key that nobody keeps."""
        return cls(cls.draw_seed(), parameters)

    def public_key(self) -> PublicKey:
        """Make a public key: each is another, and its owner keeps the one that was given away."""
        primes = len(self.parameters.key_primes)
        zero = self._encryptor.encrypt_zero_symmetric(self._backend.parms_id(primes))
        first, seed = self._split(zero, primes)
        return PublicKey(polynomials=first[np.newaxis, np.newaxis], seed=seed)

    def encrypt(self, plaintext: seal.Plaintext) -> tuple[npt.NDArray[np.uint64], bytes]:
        """Encrypt at the level of records.

        Returns:
            The first polynomial, shape (primes, N), and the seed of the second one.
        """
        return self._split(self._encryptor.encrypt_symmetric(plaintext), len(self.parameters.primes))

    def decrypt(self, polynomials: npt.NDArray[np.uint64]) -> Slots:
        """Decrypt an answer's polynomials.

        Args:
            polynomials: Shape (polynomials, primes, N), checked.

        Returns:
            Its slots, shape (N/2,), in units of the parameters.
        """
        plaintext = seal.Plaintext()
        self._decryptor.decrypt(self._backend.load(polynomials), plaintext)
        slots: Slots = np.array(self._backend.encoder.decode_complex(plaintext), dtype=np.complex128)
        return slots / self.parameters.unit

    def decrypt_coefficients(self, polynomials: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        """Decrypt an answer's polynomials to coefficients, shape (N,), in units of the parameters."""
        (coefficients,) = canonical_embedding(self.parameters.ring_degree).coefficients(self.decrypt(polynomials)[None])
        return np.asarray(coefficients)

    def _split(self, seeded: seal.Ciphertext, primes: int) -> tuple[npt.NDArray[np.uint64], bytes]:
        degree = self.parameters.ring_degree
        with ScratchFile() as scratch:
            seeded.save(scratch.path)
            first, seed = split_seeded(scratch.read(), primes * degree)
        return first.reshape(primes, degree), seed

    def __repr__(self) -> str:
        return "PredictionKey(<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise SecretMaterialError("a prediction key must not leave its process")


class PublicEncryptor:
    """Encrypts with a public key alone; it cannot read what it wrote.

    Args:
        key: The public key, checked.
        parameters: Of predictions.
    """

    def __init__(self, key: PublicKey, parameters: PredictionParameters) -> None:
        self.parameters = parameters
        self._backend = prediction_backend(parameters)
        self._encryptor = seal.Encryptor(self._backend.context, self._backend.load_public_key(key))

    def encrypt(self, plaintext: seal.Plaintext) -> npt.NDArray[np.uint64]:
        """Encrypt at the level of records; return both polynomials, shape (2, primes, N)."""
        ciphertext = seal.Ciphertext()
        self._encryptor.encrypt(plaintext, ciphertext)
        return self._backend.save(ciphertext, polynomials=2, primes=len(self.parameters.primes))
