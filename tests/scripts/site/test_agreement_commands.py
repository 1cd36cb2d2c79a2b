"""What the coordinator makes of the hospitals' cards, and what a hospital's people see of it before they pin it."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from click.testing import Result
from typer.testing import CliRunner

from clients.run.code import code_digest
from clients.run.membership import CONSORTIUM_SECRET, PIN, Membership, commitment
from clients.secrets.enrolment import enrol
from clients.secrets.identity_file import read_identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from conf import compose
from protocol.agreement import Agreement, SiteId
from protocol.enrolment import fingerprint
from protocol.errors import ConfigurationError
from protocol.privacy_terms import PrivacyTerms
from scripts.cli import app
from scripts.site.agreement_page import MEANINGS, digest_in_groups

NAMES = ("cleveland", "hungary", "long-beach")
HEART = ("experiment=heart_disease", "strategy.rounds=7")


def agreement(command, *arguments, answer=None, columns=300) -> Result:
    """Run `cipherward agreement ...` in the current directory."""
    line = ["agreement", command, *map(str, arguments)]
    return CliRunner().invoke(app, line, input=answer, catch_exceptions=False, env={"COLUMNS": str(columns)})


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The coordinator's desk: three hospitals have enrolled and sent their cards."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        card = enrol(Vault(tmp_path / "vaults" / name), SiteId(name))
        (tmp_path / f"{name}.card.json").write_bytes(card.to_bytes())
    return tmp_path


@pytest.fixture
def made(desk):
    """An agreement of the three hospitals."""
    assert agreement("create", *cards(), *HEART).exit_code == 0
    return read(desk / "agreement.json")


def cards(*names):
    return [f"{name}.card.json" for name in names or reversed(NAMES)]


def read(path):
    return Agreement.from_bytes(path.read_bytes())


def vault_of(desk, name="hungary"):
    return Vault(desk / "vaults" / name)


def pin(desk, *arguments, answer=None, name="hungary", secret="consortium.secret"):
    where = ("--secret", secret, "--vault", vault_of(desk, name).directory)
    return agreement("pin", "agreement.json", *where, *arguments, answer=answer)


def test_an_agreement_is_made_of_cards_and_an_experiment_for_another_number_of_sites(desk):
    done = agreement("create", *cards(), *HEART)
    made = read(desk / "agreement.json")

    assert done.exit_code == 0
    assert [card.name for card in made.roster] == list(NAMES)
    assert made.code_digest == code_digest()
    assert made.secret_digest == commitment(SecretBytes((desk / "consortium.secret").read_bytes()))
    assert made.terms == compose(HEART).terms
    assert made.terms.training.rounds == 7
    assert digest_in_groups(made).splitlines()[1] in done.output
    for card in made.roster:
        assert fingerprint(card) in done.output
    assert "never to the provider" in done.output


def test_the_consortium_s_secret_is_made_once_and_for_nobody_else(desk):
    assert "made now" in agreement("create", *cards(), *HEART).output
    secret = desk / "consortium.secret"
    first = secret.read_bytes()

    assert len(first) == 32
    assert secret.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match=r"agreement.json is there already, .* with --output"):
        agreement("create", *cards(), "data=breast_cancer")
    assert "as it was" in agreement("create", *cards(), "data=breast_cancer", "--output", "other.json").output
    assert secret.read_bytes() == first

    secret.write_bytes(first[:31])
    with pytest.raises(ConfigurationError, match="does not hold 32 bytes"):
        agreement("create", *cards(), *HEART, "--output", "third.json")


def test_the_same_cards_and_terms_with_a_new_secret_make_another_agreement(made, desk):
    agreement("create", *cards(), *HEART, "--secret", "new.secret", "--output", "new.json")
    agreement("create", *cards(), *HEART, "--output", "same.json")

    assert read(desk / "new.json") == replace(made, secret_digest=read(desk / "new.json").secret_digest)
    assert read(desk / "new.json").digest != made.digest
    assert read(desk / "same.json").digest == made.digest


def test_output_and_secret_go_where_they_are_told_to(desk):
    agreement("create", *cards(), *HEART, "--output", "a.json", "--secret", "b.secret")

    assert read(desk / "a.json").terms.data.name == "heart_disease"
    assert len((desk / "b.secret").read_bytes()) == 32
    assert not (desk / "agreement.json").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("cleveland.card.json", "hungary.card.json"), "smallest_cohort"),
        (("hungary.card.json", *cards()), "names a site twice"),
        ((*cards(), "strategy.roundz=3"), "strategy.roundz"),
        ((*cards(), "experiment=no_such"), "no_such"),
        ((*cards(), "--output", "no-such-directory/agreement.json"), "no-such-directory"),
        ((*cards(), "--secret", "no-such-directory/consortium.secret"), "no-such-directory"),
        (("budapest.card.json", *cards()), r"budapest\.card\.json: No such file"),
        (("damaged.card.json", *cards()), r"damaged\.card\.json is no hospital's card"),
        (("forged.card.json", *cards()), r"forged\.card\.json is no hospital's card"),
    ],
)
def test_what_makes_no_agreement_is_named_and_nothing_is_written(desk, arguments, match):
    card = (desk / "hungary.card.json").read_bytes()
    (desk / "damaged.card.json").write_bytes(card[:-1])
    (desk / "forged.card.json").write_bytes(card.replace(b'"hungary"', b'"hungarx"'))

    with pytest.raises(ConfigurationError, match=match):
        agreement("create", *arguments)
    assert not (desk / "agreement.json").exists()
    assert not (desk / "consortium.secret").exists()


def test_every_setting_is_shown_with_its_value_and_what_it_means(made, desk):
    text = agreement("show", desk / "agreement.json").output

    for key in MEANINGS:
        assert f"{key.rpartition('.')[2]} " in text
    for card in made.roster:
        assert f"{card.name} " in text
        assert fingerprint(card) in text
    for column in made.terms.data.columns:
        assert f"{column.name} " in text
    assert "a coronary artery narrowed by more than half" in text
    assert f"N = {made.parameters.ring_degree} and a modulus of {made.parameters.modulus_bits} bits" in text
    assert "installed here" in text
    assert "no differential privacy" in text
    assert "the public initial model" in text
    assert f"{made.secret_digest} (commits to the consortium's secret)" in text
    assert all(line in text for line in digest_in_groups(made).splitlines())


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_nothing_that_people_decide_by_is_cut_short(made, desk, columns):
    assert "…" not in agreement("show", "agreement.json", columns=columns).output


def test_whoever_gives_the_agreement_another_part_must_show_it():
    assert {field.name for field in fields(Agreement)} == {"roster", "terms", "code_digest", "secret_digest", "start"}


def test_a_model_that_the_run_starts_from_is_shown(made, desk):
    (desk / "next.json").write_bytes(replace(made, start="ab" * 32).to_bytes())

    text = agreement("show", "next.json").output

    assert f"{'ab' * 32} (commits to the model that the hospitals have)" in text
    assert "the public initial model" not in text


def test_noise_is_shown_with_what_it_promises(made, desk):
    terms = replace(
        made.terms,
        model=replace(made.terms.model, personal=()),
        privacy=PrivacyTerms(noise_multiplier=2.0),
    )
    (desk / "noisy.json").write_bytes(replace(made, terms=terms).to_bytes())

    assert "epsilon" in agreement("show", "noisy.json").output.split("encryption")[-1]


def test_an_agreement_for_other_code_is_shown_as_that(made, desk):
    (desk / "old.json").write_bytes(replace(made, code_digest="0" * 64).to_bytes())

    assert "NOT the release installed here" in " ".join(agreement("show", "old.json").output.split())


def test_text_from_outside_cannot_repaint_the_screen(made, desk):
    data = made.terms.data
    label = replace(data.label, meaning="\x1b[2J\x1b]0;x\x07[bold red]harmless\u202e")
    hostile = replace(made, terms=replace(made.terms, data=replace(data, label=label, name="\x1b[8mhidden")))
    (desk / "hostile.json").write_bytes(hostile.to_bytes())

    text = agreement("show", "hostile.json").output

    assert not set(text) & set("\x1b\x07\u202e")
    assert "\\u001b[2J" in text
    assert "[bold red]harmless\\u202e" in text


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 10_000])
def test_a_file_that_is_no_agreement_is_named(desk, content):
    (desk / "agreement.json").write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"agreement\.json is no agreement"):
        agreement("show", "agreement.json")


def test_an_agreement_is_pinned_after_its_digest_was_compared(made, desk):
    assert pin(desk, answer="n\n").exit_code == 1
    assert not vault_of(desk).has(PIN)

    done = pin(desk, answer="y\n")

    assert done.exit_code == 0
    assert digest_in_groups(made) in done.output
    assert "hungary has pinned it as site 2 of 3" in done.output
    assert "delete consortium.secret" in done.output
    member = Membership.load(vault_of(desk))
    assert member.agreement == made
    assert member.consortium_secret == SecretBytes((desk / "consortium.secret").read_bytes())


def test_the_digest_that_was_read_out_can_be_given(made, desk):
    digits = made.digest.hex()
    for wrong in (digits[:-1], digits[:16], digits.replace(digits[0], "g"), f"{digits}0", digits.upper()):
        with pytest.raises(ConfigurationError, match="not the digest you gave"):
            pin(desk, "--digest", wrong)
    assert not vault_of(desk).has(PIN)

    assert pin(desk, "--digest", digest_in_groups(made)).exit_code == 0
    assert Membership.load(vault_of(desk)).site == 1


def test_what_this_site_cannot_take_part_in_is_refused_before_anybody_is_asked(made, desk):
    for changed, match in (
        (replace(made, roster=(made.roster[0], made.roster[2], replace(made.roster[1], name="zurich"))), "hungary"),
        (replace(made, code_digest="0" * 64), "install the release"),
    ):
        (desk / "agreement.json").write_bytes(changed.to_bytes())
        with pytest.raises(ConfigurationError, match=match):
            pin(desk)
    (desk / "agreement.json").write_bytes(made.to_bytes())
    (desk / "short.secret").write_bytes(bytes(31))
    with pytest.raises(ConfigurationError, match="does not hold 32 bytes"):
        pin(desk, secret="short.secret")
    (desk / "other.secret").write_bytes(bytes(32))
    with pytest.raises(ConfigurationError, match="not the one that the agreement was made with"):
        pin(desk, secret="other.secret")
    with pytest.raises(ConfigurationError, match="is no site's vault"):
        agreement("pin", "agreement.json", "--secret", "consortium.secret", "--vault", desk)
    assert not vault_of(desk).has(PIN)


def test_another_agreement_takes_the_pinned_one_s_place_only_if_it_is_said(made, desk):
    pin(desk, answer="y\n")
    (desk / "agreement.json").unlink()
    agreement("create", *cards(), *HEART, "strategy.rounds=8")

    with pytest.raises(ConfigurationError, match=r"pinned another agreement .*--replace"):
        pin(desk, answer="y\n")
    assert Membership.load(vault_of(desk)).agreement == made

    assert "forget" not in pin(desk, "--replace", answer="y\n").output
    assert Membership.load(vault_of(desk)).agreement.terms.training.rounds == 8


def test_runs_that_the_replaced_agreement_left_open_are_told_and_can_be_ended(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vault, before = started.vault(0), started.agreement
    terms = replace(before.terms, training=replace(before.terms.training, rounds=9))
    (tmp_path / "agreement.json").write_bytes(replace(before, terms=terms).to_bytes())
    line = ("agreement.json", "--secret", vault.path(CONSORTIUM_SECRET), "--vault", vault.directory, "--replace")

    assert "1 runs of before" in agreement("pin", *line, answer="y\n").output
    forget = ["site", "forget", "--vault", str(vault.directory), "--yes"]
    assert CliRunner().invoke(app, forget, catch_exceptions=False).exit_code == 0
    assert not list(started.run_path(0).glob("*.secret"))


def test_no_secret_is_in_what_is_printed_or_made_public(desk):
    output = "".join(
        done.output
        for done in (
            agreement("create", *cards(), *HEART),
            agreement("show", "agreement.json"),
            pin(desk, answer="y\n"),
            pin(desk, "--replace", answer="y\n"),
        )
    )
    public = output.encode() + b"".join(path.read_bytes() for path in desk.glob("*.json"))
    public += b"".join(path.read_bytes() for path in desk.glob("vaults/*/*.json*"))

    secrets = [(desk / "consortium.secret").read_bytes()]
    for name in NAMES:
        raw = read_identity(vault_of(desk, name)).to_secret().reveal()
        secrets += [raw[:32], raw[32:]]
    for secret in secrets:
        assert secret not in public
        assert secret.hex().encode() not in public
    assert json.loads((desk / "agreement.json").read_bytes())["roster"][0]["name"] == "cleveland"
