"""SEAL's public arithmetic for predictions, at every level of the modulus. No secret key is made or held here.

Trust: both sides run it. SEAL gets only bytes that `protocol.seal_format` built of checked residues.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from protocol.backend import make_context
from protocol.embedding import canonical_embedding
from protocol.prediction.messages import PublicKey
from protocol.prediction.parameters import PredictionParameters
from protocol.prediction.wire import Polynomials
from protocol.scratch_file import ScratchFile
from protocol.seal_format import CiphertextLayout, split_expanded, split_plaintext

if TYPE_CHECKING:
    import tenseal.sealapi as seal
    from tenseal.sealapi import Ciphertext, Plaintext

    __all__ = ["Ciphertext", "Plaintext", "PredictionBackend", "prediction_backend"]


class PredictionBackend:
    """SEAL's public objects for one parameter set.

    Args:
        parameters: Of predictions.
    """

    def __init__(self, parameters: PredictionParameters) -> None:
        import tenseal.sealapi as seal  # noqa: PLC0415 - loaded by those alone who need it

        self.parameters = parameters
        self._seal = seal
        self.context = make_context(parameters.ring_degree, parameters.key_primes, None)
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)
        self._embedding = canonical_embedding(parameters.ring_degree)
        self._parms_ids = self._chain()

    def parms_id(self, primes: int) -> list[int]:
        """Return SEAL's name for the level that has so many primes; the level of keys has one more than records."""
        parms_id: list[int] = self._parms_ids[primes]
        return parms_id

    def load_seeded(self, first: npt.NDArray[np.uint64], seed: bytes) -> seal.Ciphertext:
        """Return a fresh ciphertext of a first polynomial, shape (primes, N), and the seed of the second one."""
        return self._load(self._layout(len(first), 2).seeded(first, seed))

    def load(self, polynomials: npt.NDArray[np.uint64]) -> seal.Ciphertext:
        """Return a ciphertext of its polynomials, shape (polynomials, primes, N)."""
        size, primes, _ = polynomials.shape
        return self._load(self._layout(primes, size).expanded(*polynomials))

    def load_public_key(self, key: PublicKey) -> seal.PublicKey:
        """Return a public key."""
        loaded = self._seal.PublicKey()
        ((first,),) = key.polynomials
        with ScratchFile() as scratch:
            loaded.load(self.context, scratch.write(self._layout(len(first), 2).seeded(first, key.seed)))
        return loaded

    def save(self, saved: seal.Ciphertext | seal.PublicKey, *, polynomials: int, primes: int) -> Polynomials:
        """Return the residues of a ciphertext or public key, shape (polynomials, primes, N)."""
        degree = self.parameters.ring_degree
        with ScratchFile() as scratch:
            saved.save(scratch.path)
            words = split_expanded(scratch.read(), primes * degree, polynomials)
        return words.reshape(polynomials, primes, degree)

    def encryptions_of_zero(self, key: PublicKey, *, count: int, primes: int) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield fresh encryptions of zero under a public key, each of shape (2, primes, N)."""
        encryptor = self._seal.Encryptor(self.context, self.load_public_key(key))
        for _ in range(count):
            zero = self._seal.Ciphertext()
            encryptor.encrypt_zero(self.parms_id(primes), zero)
            yield self.save(zero, polynomials=2, primes=primes)

    def encode(self, coefficients: npt.NDArray[np.float64], primes: int) -> seal.Plaintext:
        """Return the plaintext of integer coefficients, shape (N,), exact where a transform of doubles is."""
        return self.encode_slots(self._embedding.slots(coefficients[np.newaxis])[0], primes)

    def encode_slots(self, slots: npt.NDArray[np.complex128], primes: int) -> seal.Plaintext:
        """Return the plaintext of slots, shape (N/2,), rounded to integer coefficients."""
        plaintext = self._seal.Plaintext()
        self.encoder.encode(slots.tolist(), self.parms_id(primes), 1.0, plaintext)
        return plaintext

    def encode_scalar(self, value: float, primes: int) -> seal.Plaintext:
        """Return the plaintext that holds one number in every slot, rounded to an integer."""
        plaintext = self._seal.Plaintext()
        self.encoder.encode(float(value), self.parms_id(primes), 1.0, plaintext)
        return plaintext

    def residues(self, plaintext: seal.Plaintext, primes: int) -> npt.NDArray[np.uint64]:
        """Return an encoded plaintext's residues, shape (primes, N), in the form in which ciphertexts have them."""
        degree = self.parameters.ring_degree
        with ScratchFile() as scratch:
            plaintext.save(scratch.path)
            return split_plaintext(scratch.read(), primes * degree).reshape(primes, degree)

    def multiplied(self, ciphertext: seal.Ciphertext, plaintext: seal.Plaintext) -> seal.Ciphertext:
        """Return a ciphertext times a plaintext that is not zero."""
        result = self._seal.Ciphertext()
        self.evaluator.multiply_plain(ciphertext, plaintext, result)
        return result

    def product(self, left: seal.Ciphertext, right: seal.Ciphertext) -> seal.Ciphertext:
        """Return the product of two ciphertexts, with as many polynomials as it needs."""
        result = self._seal.Ciphertext()
        self.evaluator.multiply(left, right, result)
        return result

    def drop(self, ciphertext: seal.Ciphertext, primes: int) -> None:
        """Divide by the last primes of a ciphertext's modulus, in place, and forget them."""
        for _ in range(primes):
            self.evaluator.rescale_to_next_inplace(ciphertext)
            ciphertext.scale = 1.0

    @lru_cache(maxsize=16)  # noqa: B019 - backends are made once and live as long as the process
    def _layout(self, primes: int, polynomials: int) -> CiphertextLayout:
        with ScratchFile() as scratch:
            self._seal.Ciphertext(self.context, self.parms_id(primes)).save(scratch.path)
            return CiphertextLayout.of(
                scratch.read(),
                ring_degree=self.parameters.ring_degree,
                scale=1.0,
                primes=primes,
                polynomials=polynomials,
            )

    def _load(self, data: bytes) -> seal.Ciphertext:
        ciphertext = self._seal.Ciphertext(self.context)
        with ScratchFile() as scratch:
            ciphertext.load(self.context, scratch.write(data))
        return ciphertext

    def _chain(self) -> dict[int, list[int]]:
        chain, data = {}, self.context.key_context_data()
        while data is not None:
            chain[len(data.parms().coeff_modulus())] = data.parms_id()
            data = data.next_context_data()
        return chain


@lru_cache(maxsize=4)
def prediction_backend(parameters: PredictionParameters) -> PredictionBackend:
    """Return SEAL's objects for a parameter set; they are made once per process."""
    return PredictionBackend(parameters)
