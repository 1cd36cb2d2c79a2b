"""A consortium made for benchmarks: real keys and terms, no data, no disk, no Flower.

Trust: a benchmark; it makes up sites and keys.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.data.table import Values
from clients.run.code import code_digest
from clients.run.membership import commitment
from clients.secrets.identity import Identity
from clients.secrets.keys import EpochKeys, PairKeys, agree_pairs
from clients.secrets.release import release
from clients.secrets.sealing import seal_update
from clients.secrets.secret import SecretBytes
from protocol.agreement import Agreement, SiteId
from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms
from protocol.handshake import RUN_BYTES, RunCard, Session
from protocol.packing import Integers, PackingPlan, RoundKind, quantise
from protocol.rounds import RoundTerms
from protocol.schedule import KEY_BYTES
from protocol.terms import CryptoTerms, ModelTerms, Terms
from protocol.update import EncryptedAggregate
from strategies.round_sum import RoundSum

STATE: Final = bytes(32)
"""The state that all sites are in."""

_TRAIN_ROUND: Final = 1


class BenchFederation:
    """Sites with real keys, in memory, whose train round packs about a wanted number of values.

    Args:
        values: Coefficients wanted in an update.
        sites: Sites in the cohort.
        value_bits: Exact bits wanted per value.
        largest_seeded_cohort: Sums of more sites are expanded.
    """

    def __init__(
        self,
        values: int,
        sites: int,
        value_bits: int,
        largest_seeded_cohort: int = CryptoTerms().largest_seeded_cohort,
    ) -> None:
        self._identities = [Identity.generate() for _ in range(sites)]
        consortium_secret = SecretBytes(os.urandom(KEY_BYTES))
        crypto = CryptoTerms(value_bits=value_bits, largest_seeded_cohort=largest_seeded_cohort)
        agreement = self._agree(values, crypto, commitment(consortium_secret))
        run = os.urandom(RUN_BYTES)
        ephemerals = [X25519PrivateKey.generate() for _ in range(sites)]
        cards = [
            RunCard(
                site=site,
                run=run,
                agreement=agreement.digest,
                exchange_key=ephemeral.public_key().public_bytes_raw(),
                nonce=os.urandom(KEY_BYTES),
                signature=b"",
            )
            for site, ephemeral in enumerate(ephemerals)
        ]
        session = Session.of(cards, agreement)
        self.epoch_keys = EpochKeys(EpochKeys.draw(), agreement, session.digest)
        self.pair_keys = [
            PairKeys(
                agreement=agreement,
                session=session,
                site=site,
                secrets=agree_pairs(
                    agreement=agreement,
                    session=session,
                    site=site,
                    identity=identity,
                    ephemeral=ephemerals[site],
                    consortium_secret=consortium_secret,
                ),
            )
            for site, identity in enumerate(self._identities)
        ]
        self.terms = RoundTerms(
            agreement=agreement,
            session=session.digest,
            epoch=1,
            round=_TRAIN_ROUND,
            cohort=tuple(range(sites)),
            state=self.epoch_keys.state_mac(STATE),
        )
        self.plan: PackingPlan = self.terms.plan
        self._tensors = agreement.terms.model.shared_shapes(1)
        self._step = 2.0 ** (2 - self.plan.parameters.value_bits)  # clips at about 2

    def _agree(self, values: int, crypto: CryptoTerms, secret_digest: str) -> Agreement:
        roster = tuple(
            identity.card(SiteId(f"hospital-{position:03}")) for position, identity in enumerate(self._identities)
        )

        def agreement(hidden: int) -> Agreement:
            # one input and one hidden layer of h units make 3 h + 1 parameters
            terms = Terms(
                data=DataTerms(
                    name="benchmark", columns=(ColumnTerms(name="input", centre=0, scale=1),), label=LabelTerms()
                ),
                model=ModelTerms(kind="mlp", hidden=(hidden,)),
                crypto=crypto,
            )
            return Agreement(roster=roster, terms=terms, code_digest=code_digest(), secret_digest=secret_digest)

        overhead = agreement(1).plan(RoundKind.TRAIN).values - 3
        return agreement(max(1, (values - overhead) // 3))

    @property
    def parameters(self) -> int:
        """Number of the model's values."""
        return sum(field.size for field in self.plan.fields if field.name in self._tensors)

    def pack(self, update: Values) -> Integers:
        """Quantise and pack one site's change of the model."""
        content: dict[str, Integers] = {}
        start = 0
        for packed in self.plan.fields:
            if packed.name in self._tensors:
                content[packed.name], _ = quantise(
                    update[start : start + packed.size],
                    step=self._step,
                    clip_steps=self.plan.parameters.clip_steps,
                    weight=1 / len(self._identities),
                    name=packed.name,
                )
                start += packed.size
            else:
                content[packed.name] = np.zeros(packed.size, dtype=np.int64)
        return self.plan.pack(content)

    def unpack(self, exact: Integers) -> Values:
        """Return the sum's values."""
        content = self.plan.unpack(exact)
        tensors = [content[name] for name in content if name in self._tensors]
        return np.concatenate(tensors).astype(np.float64) * self._step

    def seal(self, packed: Integers, site: int) -> bytes:
        """Return one site's update as it leaves."""
        return seal_update(
            packed,
            terms=self.terms,
            state=STATE,
            site=site,
            identity=self._identities[site],
            pair_keys=self.pair_keys[site],
            epoch_keys=self.epoch_keys,
        ).to_bytes()

    def add(self, updates: Sequence[bytes | bytearray]) -> RoundSum:
        """Do the provider's part: parse, check and add."""
        total = RoundSum(self.terms)
        for update in updates:
            total.add(update)
        return total

    def release(self, aggregate: bytes) -> Integers:
        """Do a site's part: parse, verify, decrypt."""
        return release(
            EncryptedAggregate.from_bytes(aggregate, self.terms.agreement),
            terms=self.terms,
            state=STATE,
            epoch_keys=self.epoch_keys,
            own_proof=None,
        )
