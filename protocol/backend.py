"""SEAL's public arithmetic for one parameter set. No key is made or held here.

TenSEAL is loaded with the first backend and not with this module: a provider whose cohorts are small never loads it.

Trust: both sides run it. SEAL gets only bytes that `protocol.seal_format` built.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from protocol.errors import BackendError
from protocol.parameters import CkksParameters
from protocol.scratch_file import ScratchFile
from protocol.seal_format import CiphertextLayout

if TYPE_CHECKING:
    import tenseal.sealapi as seal


class Backend:
    """SEAL's public objects for one parameter set.

    Args:
        parameters: CKKS parameters.
    """

    def __init__(self, parameters: CkksParameters) -> None:
        import tenseal.sealapi as seal  # noqa: PLC0415 - loaded by those alone who need it

        self._new_ciphertext = seal.Ciphertext
        self.context = make_context(parameters.ring_degree, (parameters.modulus,), None)
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)
        self.parms_id = self.context.first_parms_id()
        with ScratchFile() as scratch:
            seal.Ciphertext(self.context).save(scratch.path)
            self.layout = CiphertextLayout.of(
                scratch.read(), ring_degree=parameters.ring_degree, scale=parameters.scale
            )
        self._uniform_prefix = self.layout.seeded(np.zeros(parameters.ring_degree, dtype=np.uint64), b"")

    def load(self, path: str) -> seal.Ciphertext:
        """Load a ciphertext that was built here."""
        ciphertext = self._new_ciphertext(self.context)
        ciphertext.load(self.context, path)
        return ciphertext

    def load_uniform(self, seed: bytes, scratch: ScratchFile) -> seal.Ciphertext:
        """Return the ciphertext of a zero first polynomial and the second one that a 64-byte seed stands for."""
        return self.load(scratch.write(self._uniform_prefix + seed))


@lru_cache(maxsize=8)
def backend(parameters: CkksParameters) -> Backend:
    """Return SEAL's objects for a parameter set; they are made once per process."""
    return Backend(parameters)


def make_context(
    ring_degree: int, moduli: tuple[int, ...], factory: seal.Blake2xbPRNGFactory | None
) -> seal.SEALContext:
    """Make SEAL's context, with the installation's own random generator or with a given one.

    Args:
        ring_degree: N.
        moduli: The primes, as SEAL picks them for their lengths.
        factory: A random generator, or None for the installation's own.

    Raises:
        BackendError: SEAL picks another prime or refuses the parameters.
    """
    import tenseal.sealapi as seal  # noqa: PLC0415 - loaded by those alone who need it

    bits = [modulus.bit_length() for modulus in moduli]
    picked = seal.CoeffModulus.Create(ring_degree, bits)
    if tuple(modulus.value() for modulus in picked) != moduli:
        raise BackendError(f"SEAL picks other primes of {bits} bits than {moduli}")
    settings = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    settings.set_poly_modulus_degree(ring_degree)
    settings.set_coeff_modulus(picked)
    if factory is not None:
        settings.set_random_generator(factory)
    context = seal.SEALContext(settings, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise BackendError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
    return context
