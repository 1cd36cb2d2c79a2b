"""A roster in which the other hospitals are the provider, or one of them poses as another.

Who: the provider, while a consortium is set up; or a site that names another's key as its own. Want: one hospital's
update.
How: it hands the victim an agreement whose other sites have keys of the provider's making, and plays them all.
Answer: each site pins the agreement's digest, compared out of band, and A goes into every signature; and the
consortium secret, which the provider does not have, into every pair key, and a commitment to it into A. Unknown key
share: Blake-Wilson, Menzies (1999).
"""

from __future__ import annotations

import os
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
from coalition import Insider, collect, put_back, refusal, truth, weaken_pairs
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

import clients.run.membership
import clients.run.opening
import protocol.agreement
from clients.run.files import RunFiles
from clients.run.membership import AGREEMENT, CONSORTIUM_SECRET, PIN, commitment
from clients.secrets.identity import Identity
from clients.secrets.identity_file import IDENTITY
from clients.secrets.keys import PairKeys
from clients.secrets.secret import SecretBytes
from protocol.agreement import Agreement, SiteCard, SiteId
from protocol.envelope import Request
from protocol.errors import ConfigurationError, SealError
from protocol.handshake import SealedSecret, Session
from protocol.schedule import digest, expand, extract
from protocol.terms import CohortTerms

VICTIM, ACCOMPLICES = 2, (0, 1, 3)


def hand_over(federation, position: int, agreement: Agreement) -> None:
    """Put another agreement in the place of the one that a site pinned."""
    federation.vault(position).write(AGREEMENT, agreement.to_bytes())


def pin(federation, position: int) -> None:
    """Have a site's people pin the agreement that lies there, without comparing it with anybody."""
    agreement = Agreement.from_bytes(federation.vault(position).read(AGREEMENT))
    federation.vault(position).write(PIN, agreement.digest.hex().encode())


def surround(federation, *, consortium_secret: SecretBytes, **changes: str) -> None:
    """Make all sites but the victim the provider's own, in an agreement that names their new keys.

    Args:
        federation: The consortium, founded.
        consortium_secret: What the provider's sites have for P.
        changes: What else is changed in the agreement.
    """
    identities = {site: Identity.generate() for site in ACCOMPLICES}
    real = federation.agreement
    roster = tuple(
        identities[site].card(SiteId(card.name)) if site in identities else card
        for site, card in enumerate(real.roster)
    )
    agreement = replace(real, roster=roster, **changes)
    for site, identity in identities.items():
        vault = federation.vault(site)
        vault.write_secret(IDENTITY, identity.to_secret())
        vault.write_secret(CONSORTIUM_SECRET, consortium_secret)
        hand_over(federation, site, agreement)
        pin(federation, site)
    hand_over(federation, VICTIM, agreement)


def test_a_victim_that_pins_unseen_and_a_known_consortium_secret_lose_the_victim_s_statistics(founded):
    surround(founded, consortium_secret=founded.member(0).consortium_secret)
    pin(founded, VICTIM)
    founded.open()
    founded.prepare_all()
    secret = truth(founded, VICTIM)

    total = Insider(founded, 0).read_sum(collect(founded, founded.everyone))

    assert np.array_equal(total - sum(truth(founded, site) for site in ACCOMPLICES), secret)


def test_a_victim_that_pinned_the_real_agreement_does_not_start(founded, grid_of):
    surround(founded, consortium_secret=founded.member(0).consortium_secret)

    assert refusal(grid_of(founded), founded, VICTIM, Request.ANNOUNCE) == "ConfigurationError"
    with pytest.raises(ConfigurationError, match="not the agreement that this site pinned"):
        founded.site(VICTIM)


def test_an_agreement_that_commits_to_the_provider_s_own_secret_does_not_fit_the_victim_s(founded, grid_of):
    secret = SecretBytes(os.urandom(32))
    surround(founded, consortium_secret=secret, secret_digest=commitment(secret))
    pin(founded, VICTIM)

    assert refusal(grid_of(founded), founded, VICTIM, Request.ANNOUNCE) == "ConfigurationError"
    with pytest.raises(ConfigurationError, match="not the one that the agreement was made with"):
        founded.site(VICTIM)


def test_without_the_consortium_secret_the_victim_takes_no_epoch_secret(founded, grid_of, monkeypatch):
    # the real commitment is public; that the provider's own sites cannot open it stops nobody but them
    surround(founded, consortium_secret=SecretBytes(os.urandom(32)))
    monkeypatch.setattr(clients.run.membership, "check_consortium_secret", lambda *_: None)
    pin(founded, VICTIM)
    founded.announce()
    secret = founded.entrust()[VICTIM]

    got = refusal(grid_of(founded), founded, VICTIM, Request.OPEN, session=founded.session, secret=secret)

    assert got == "SealError"
    assert RunFiles(founded.vault(VICTIM), founded.run).session() is None


@pytest.mark.parametrize(
    "weaken",
    [
        lambda agreement: replace(
            agreement,
            terms=replace(agreement.terms, cohort=CohortTerms(tolerated_colluders=0, smallest_cohort=2)),
        ),
        lambda agreement: replace(
            agreement, terms=replace(agreement.terms, training=replace(agreement.terms.training, clip=8.0))
        ),
        lambda agreement: replace(
            agreement,
            roster=(*agreement.roster[:3], Identity.generate().card(SiteId(agreement.roster[3].name))),
        ),
    ],
    ids=["smaller cohorts", "a wider clip", "one other card"],
)
def test_an_agreement_that_differs_at_one_site_is_refused_there_and_if_pinned_by_all_others(founded, grid_of, weaken):
    grid, real = grid_of(founded), founded.agreement
    hand_over(founded, VICTIM, weaken(real))
    assert refusal(grid, founded, VICTIM, Request.ANNOUNCE) == "ConfigurationError"

    pin(founded, VICTIM)  # its people were talked into it
    founded.announce()

    assert refusal(grid, founded, 0, Request.ENTRUST, session=founded.session) == "AgreementMismatchError"
    founded.session = founded.session_of(*ACCOMPLICES)
    founded.ask(0, Request.ENTRUST, session=founded.session)  # without it the others can go on


IMPOSTOR = 3


def posing_roster(agreement) -> tuple[SiteCard, ...]:
    """Return the roster in which one site names the exchange key of another as its own."""
    posing = replace(agreement.roster[IMPOSTOR], exchange_key=agreement.roster[VICTIM].exchange_key)
    return (*agreement.roster[:IMPOSTOR], posing)


@pytest.fixture
def impostor(founded, monkeypatch):
    """A site whose card in the roster, and whose run card, name the victim's exchange keys, which nobody looks at."""
    monkeypatch.setattr(protocol.agreement, "_exchange_key", attrgetter("name"))
    monkeypatch.setattr(Session, "of", classmethod(lambda cls, cards, agreement: cls(cards=tuple(cards))))
    real = founded.agreement
    agreement = replace(real, roster=posing_roster(real))
    for site in founded.everyone:
        hand_over(founded, site, agreement)
        pin(founded, site)
    founded.cards = {site: founded.ask(site, Request.ANNOUNCE)["card"] for site in (0, 1, VICTIM)}
    signing = Identity.from_secret(founded.vault(IMPOSTOR).read_secret(IDENTITY))
    unsigned = replace(founded.card_of(VICTIM), site=IMPOSTOR, signature=b"")
    founded.cards[IMPOSTOR] = replace(unsigned, signature=signing.sign(unsigned.signed_bytes())).to_bytes()
    founded.session = founded.session_of(*founded.everyone)
    yield founded
    protocol.agreement._parse.cache_clear()  # it remembers that this agreement was accepted


def meant_for_impostor(federation) -> SealedSecret:
    """Return what the steward seals to the impostor, with the recipient's name changed to the victim's."""
    sealed = federation.entrust()[IMPOSTOR]
    return replace(SealedSecret.from_bytes(sealed, federation.agreement, federation.parsed_session()), recipient=VICTIM)


def pair_keys_of(federation, site: int, *, identity: Identity, ephemeral: X25519PrivateKey) -> PairKeys:
    """Return what a site that has these keys shares with the others."""
    agreement, session = federation.agreement, federation.parsed_session()
    secrets = clients.run.opening.agree_pairs(
        agreement=agreement,
        session=session,
        site=site,
        identity=identity,
        ephemeral=ephemeral,
        consortium_secret=federation.member(VICTIM).consortium_secret,
    )
    return PairKeys(agreement=agreement, session=session, site=site, secrets=secrets)


def pair_keys_of_victim(federation) -> PairKeys:
    files = RunFiles(federation.vault(VICTIM), federation.run)
    return pair_keys_of(federation, VICTIM, identity=federation.member(VICTIM).identity, ephemeral=files.ephemeral())


def test_without_names_in_the_key_the_victim_opens_what_was_meant_for_its_impostor(impostor, monkeypatch):
    def nameless(self, epoch, sender, recipient):
        peer = recipient if sender == self._site else sender
        return expand(self._secrets[peer].reveal(), "seal", self._agreement.digest, self._session.digest, epoch)

    monkeypatch.setattr(PairKeys, "_sealing_key", nameless)

    secret = pair_keys_of_victim(impostor).open(meant_for_impostor(impostor))

    assert secret == RunFiles(impostor.vault(0), impostor.run).epoch().common


def test_a_roster_in_which_two_sites_share_an_exchange_key_is_no_agreement(founded, grid_of):
    real = founded.agreement
    posing = real.to_bytes().replace(
        real.roster[IMPOSTOR].exchange_key.encode(), real.roster[VICTIM].exchange_key.encode()
    )

    with pytest.raises(ConfigurationError, match="two sites of the roster share a key"):
        replace(real, roster=posing_roster(real))
    founded.vault(VICTIM).write(AGREEMENT, posing)
    founded.vault(VICTIM).write(PIN, digest("agreement", posing).hex().encode())  # its people were talked into it
    assert refusal(grid_of(founded), founded, VICTIM, Request.ANNOUNCE) == "MalformedError"


def test_nor_do_two_sites_of_a_run_share_its_key(founded, grid_of):
    founded.announce()
    unsigned = replace(founded.card_of(VICTIM), site=IMPOSTOR, signature=b"")
    signed = replace(unsigned, signature=founded.member(IMPOSTOR).identity.sign(unsigned.signed_bytes()))
    founded.session = b"".join((*(founded.cards[site] for site in (0, 1, VICTIM)), signed.to_bytes()))

    assert refusal(grid_of(founded), founded, 0, Request.ENTRUST, session=founded.session) == "MalformedError"


def test_with_names_in_the_key_an_impostor_confuses_nobody_and_cannot_open_anything_itself(impostor, grid_of):
    sealed = meant_for_impostor(impostor)

    with pytest.raises(SealError):
        pair_keys_of_victim(impostor).open(sealed)
    parts = {"session": impostor.session, "secret": sealed.to_bytes()}
    assert refusal(grid_of(impostor), impostor, VICTIM, Request.OPEN, **parts) == "SignatureError"
    own = pair_keys_of(
        impostor,
        IMPOSTOR,
        identity=Identity.from_secret(impostor.vault(IMPOSTOR).read_secret(IDENTITY)),
        ephemeral=X25519PrivateKey.generate(),
    )
    with pytest.raises(SealError):
        own.open(replace(sealed, recipient=IMPOSTOR))


def test_a_card_signed_by_another_site_is_refused(founded, grid_of):
    founded.announce()
    unsigned = replace(founded.card_of(VICTIM), exchange_key=os.urandom(32), signature=b"")
    forged = replace(unsigned, signature=founded.member(IMPOSTOR).identity.sign(unsigned.signed_bytes())).to_bytes()
    founded.session = b"".join((*(founded.cards[site] for site in (0, 1)), forged, founded.cards[IMPOSTOR]))

    assert refusal(grid_of(founded), founded, 0, Request.ENTRUST, session=founded.session) == "SignatureError"
    assert RunFiles(founded.vault(0), founded.run).session() is None


def test_without_signatures_and_static_keys_a_forged_card_gives_a_site_s_secret_to_the_forger(founded, monkeypatch):
    founded.announce()
    forger = X25519PrivateKey.generate()
    card = replace(founded.card_of(VICTIM), exchange_key=forger.public_key().public_bytes_raw())
    founded.session = b"".join((*(founded.cards[site] for site in (0, 1)), card.to_bytes(), founded.cards[IMPOSTOR]))
    monkeypatch.setattr(SiteCard, "verify", lambda *_: None)

    def open_as_forger():
        keys = pair_keys_of(founded, VICTIM, identity=Identity.generate(), ephemeral=forger)
        return keys.open(SealedSecret.from_bytes(sealed, founded.agreement, founded.parsed_session()))

    with put_back(founded, 0):
        sealed = founded.entrust()[VICTIM]
        with pytest.raises(SealError):  # the static keys still hold, even for one who has the consortium secret
            open_as_forger()

    weaken_pairs(monkeypatch, from_fresh_keys_alone)
    sealed = founded.entrust()[VICTIM]

    assert open_as_forger() == RunFiles(founded.vault(0), founded.run).epoch().common


def from_fresh_keys_alone(card, *, ephemeral, **_):
    return extract(b"", ephemeral.exchange(X25519PublicKey.from_public_bytes(card.exchange_key)))
