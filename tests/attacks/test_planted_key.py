"""A provider that seals an epoch secret of its own to the sites has their CKKS key, and reads every sum.

Who: the provider alone. Want: the sums: counts, statistics, the model.
How: it puts a run card of its own in the steward's place, and seals its secret to each of the other sites.
Answer, twice over: cards and sealed secrets are signed with keys that the agreement pins; and the key under which a
secret is sealed comes from four Diffie-Hellman products and the consortium secret. The attack needs both switched
off: an anonymous sealed box, which proves nothing about its sender. Then three sites, a whole cohort, upload under
the planted key.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from coalition import refusal, truth, weaken_pairs
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from forgery import patients

import clients.run.opening
from clients.run.files import RunFiles
from clients.secrets.ckks import Decryptor
from clients.secrets.identity import Identity
from clients.secrets.keys import EpochKeys, PairKeys
from clients.secrets.secret import SecretBytes
from protocol.agreement import SiteCard
from protocol.envelope import Request
from protocol.handshake import RunCard, Session
from protocol.packing import RoundKind
from protocol.schedule import extract
from protocol.update import EncryptedAggregate

STEWARD, VICTIMS = 0, (1, 2, 3)


@pytest.fixture
def announced(founded):
    """A run in which all sites have announced themselves."""
    founded.announce()
    return founded


@pytest.fixture
def unsigned(monkeypatch):
    """Sites that look at no signature."""
    return lambda: monkeypatch.setattr(SiteCard, "verify", lambda *_: None)


@pytest.fixture
def anonymous(monkeypatch):
    """Sites whose pair keys come from the two fresh keys alone."""

    def agree(card, *, ephemeral, **_):
        return extract(b"", ephemeral.exchange(X25519PublicKey.from_public_bytes(card.exchange_key)))

    return lambda: weaken_pairs(monkeypatch, agree)


class PlantingProvider:
    """Plays the steward with keys of its own; it knows the agreement and all run cards, and no secret of any site."""

    def __init__(self, federation) -> None:
        self.agreement, self.identity = federation.agreement, Identity.generate()
        ephemeral = X25519PrivateKey.generate()
        unsigned = RunCard(
            site=STEWARD,
            run=federation.run,
            agreement=self.agreement.digest,
            exchange_key=ephemeral.public_key().public_bytes_raw(),
            nonce=os.urandom(32),
            signature=b"",
        )
        card = replace(unsigned, signature=self.identity.sign(unsigned.signed_bytes()))
        self.session = Session(cards=(card, *(federation.card_of(site) for site in VICTIMS)))
        self.secret = EpochKeys.draw()
        self.epoch_keys = EpochKeys(self.secret, self.agreement, self.session.digest)
        self._pair_keys = PairKeys(
            agreement=self.agreement,
            session=self.session,
            site=STEWARD,
            secrets=clients.run.opening.agree_pairs(
                agreement=self.agreement,
                session=self.session,
                site=STEWARD,
                identity=self.identity,
                ephemeral=ephemeral,
                consortium_secret=SecretBytes(bytes(32)),  # it can only guess
            ),
        )

    def open_parts(self, site: int) -> dict[str, bytes]:
        """Return the parts of a request to open the run with the planted secret."""
        sealed = self._pair_keys.seal(self.secret, self.epoch_keys.check(), self.identity, epoch=1, to=site)
        return {"session": self.session.to_bytes(), "secret": sealed.to_bytes()}

    def read(self, data: bytes) -> np.ndarray:
        """Decrypt a sum."""
        total = EncryptedAggregate.from_bytes(data, self.agreement)
        return Decryptor(self.epoch_keys.ckks).decrypt(total.residues, [proof.seeds for proof in total.proofs])


def test_in_an_anonymous_sealed_box_the_provider_plants_its_key_and_reads_the_sum(announced, unsigned, anonymous):
    unsigned()
    anonymous()
    provider = PlantingProvider(announced)
    for site in VICTIMS:
        announced.ask(site, Request.OPEN, **provider.open_parts(site))
        assert RunFiles(announced.vault(site), announced.run).epoch().common == provider.secret
    announced.session = provider.session.to_bytes()
    for site in VICTIMS:
        announced.prepare(site, 0)
    secrets = [truth(announced, site) for site in VICTIMS]

    stolen = provider.read(announced.sum_up(VICTIMS))

    assert np.array_equal(stolen, sum(secrets))
    records = int(announced.agreement.plan(RoundKind.STATISTICS).unpack(stolen)["records"][0])
    assert records == sum(patients(announced, site)[0] for site in VICTIMS)


@pytest.mark.parametrize(
    ("is_signed", "is_authenticated", "error"),
    [(True, True, "SignatureError"), (True, False, "SignatureError"), (False, True, "SealError")],
    ids=["both defences", "signatures alone", "pair keys alone"],
)
def test_either_defence_alone_refuses_a_planted_key(
    announced, grid_of, unsigned, anonymous, is_signed, is_authenticated, error
):
    if not is_signed:
        unsigned()
    if not is_authenticated:
        anonymous()
    provider, grid = PlantingProvider(announced), grid_of(announced)

    for site in VICTIMS:
        assert refusal(grid, announced, site, Request.OPEN, **provider.open_parts(site)) == error
        assert RunFiles(announced.vault(site), announced.run).session() is None
