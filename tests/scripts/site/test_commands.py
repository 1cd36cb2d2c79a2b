"""What a hospital's people do at their own vault: enrol, check, look, give up another's update, end a run."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from clients.run.files import RunFiles
from clients.run.membership import pin
from clients.secrets.enrolment import read_card
from clients.secrets.identity_file import is_encrypted, read_identity, write_identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.enrolment import EnrolmentCard
from protocol.envelope import Request
from protocol.errors import ConfigurationError, SessionMismatchError, SiteMismatchError
from scripts.cli import app


def site(command, vault, *arguments, answer=None):
    """Run `cipherward site ... --vault VAULT` and return what it printed."""
    line = ["site", command, *map(str, arguments), "--vault", str(vault)]
    done = CliRunner().invoke(app, line, input=answer, catch_exceptions=False, env={"COLUMNS": "300"})
    return done.exit_code, done.output


def journal(federation, position):
    return [json.loads(line) for line in federation.vault(position).path("journal.jsonl").read_text().splitlines()]


def test_status_says_where_each_run_stands(started):
    code, text = site("status", started.vault(1).directory)

    assert code == 0
    assert "round 1 of 3" in text
    assert "has not left" in text
    assert "on disk" in text

    started.upload(1, (0, 1, 2))
    assert "has left" in site("status", started.vault(1).directory)[1].replace("has not left", "")


def test_status_of_a_closed_run(summed):
    summed.close(2)

    text = site("status", summed.vault(2).directory)[1]

    assert "its end" in text
    assert "deleted" in text


def test_a_missing_update_is_given_up_after_a_question(started):
    vault = started.vault(0).directory

    assert site("overrule", vault, "hospital-3", answer="n\n")[0] == 1
    assert [entry for entry in journal(started, 0) if "overruled" in entry] == []

    code, text = site("overrule", vault, "hospital-3", answer="y\n")
    assert code == 0
    assert "hospital-1: go on without hospital-3's update in round 1, for good?" in text
    (entry,) = (entry for entry in journal(started, 0) if "overruled" in entry)
    assert (entry["overruled"], entry["round"], entry["run"]) == (2, 1, started.run.hex())
    assert "hospital-3" in site("status", vault)[1]
    texts = [entry.get("text") for entry in started.vault(0).lines("events.jsonl")]
    assert "this site's people gave up hospital-3's upload for round 1" in texts


def test_a_site_that_is_not_in_the_run_cannot_be_given_up(started):
    with pytest.raises(ConfigurationError, match="hospital-9"):
        site("overrule", started.vault(0).directory, "hospital-9", "--yes")
    started.sum_up((0, 1, 2))
    started.prepare(0, 2)
    federation = started
    with pytest.raises((ConfigurationError, SiteMismatchError)):
        federation.site(0).overrule(federation.run, 2, "hospital-9")


def test_ending_a_run_deletes_its_secrets_and_the_site_takes_no_more_part(started):
    code, _ = site("forget", started.vault(3).directory, "--yes")

    assert code == 0
    assert not list(started.run_path(3).glob("*.secret"))
    assert not RunFiles(started.vault(3), started.run).has_epoch()
    with pytest.raises(Exception, match="forgotten"):
        started.prepare(3, 1)
    with pytest.raises(ConfigurationError, match="0 open runs"):
        site("forget", started.vault(3).directory, "--yes")


def test_with_several_open_runs_one_must_be_named(opened):
    other = bytes(range(16))
    opened.site(0).handle(Request.ANNOUNCE, {"run": other})

    with pytest.raises(ConfigurationError, match="2 open runs"):
        site("forget", opened.vault(0).directory, "--yes")
    assert site("forget", opened.vault(0).directory, "--run", other.hex()[:8], "--yes")[0] == 0
    assert RunFiles(opened.vault(0), opened.run).has_epoch()


def test_runs_of_another_roster_are_shown_without_names_and_never_overruled(started):
    vault = started.vault(1)
    site("overrule", vault.directory, "hospital-4", "--yes")
    without_the_first = replace(started.agreement, roster=started.agreement.roster[1:])
    secret = started.member(1).consortium_secret
    pin(vault, agreement=without_the_first, consortium_secret=secret, may_replace=True)
    before = journal(started, 1)

    code, text = site("status", vault.directory)

    assert code == 0
    assert "round 1, under another agreement" in text
    assert "site 4" in text
    assert "hospital-4" not in text
    for chosen in ((), ("--run", started.run.hex())):
        with pytest.raises(ConfigurationError, match="0 open runs"):
            site("overrule", vault.directory, "hospital-3", "--yes", *chosen)
    assert journal(started, 1) == before
    assert site("forget", vault.directory, "--yes")[0] == 0


def test_a_directory_that_is_no_vault_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="is no site's vault"):
        site("status", tmp_path)


def test_status_before_the_first_sum_knows_what_has_left_and_what_was_promised(opened):
    opened.prepare_all()
    opened.upload(0, (0, 1, 2))
    opened.ask(1, Request.VOID, round=bytes(4))

    assert "has left" in site("status", opened.vault(0).directory)[1]
    text = site("status", opened.vault(1).directory)[1]
    assert "has not left" in text
    assert "hospital-2" in text.split("given up")[1]


def test_a_run_that_was_ended_before_it_was_opened_is_not_joined_again(founded):
    founded.ask(1, Request.ANNOUNCE)
    assert site("forget", founded.vault(1).directory, "--yes")[0] == 0

    with pytest.raises(SessionMismatchError, match="goes on here"):
        founded.ask(1, Request.ANNOUNCE)


def test_secrets_are_deleted_and_runs_looked_at_also_after_an_upgrade(started, monkeypatch):
    monkeypatch.setattr("clients.run.membership.code_digest", lambda: "0" * 64)

    assert "round 1 of 3" in site("status", started.vault(1).directory)[1]
    assert site("forget", started.vault(1).directory, "--yes")[0] == 0
    assert not RunFiles(started.vault(1), started.run).has_epoch()
    with pytest.raises(ConfigurationError, match="release"):
        site("overrule", started.vault(0).directory, "hospital-3", "--yes")


PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIPHERWARD_PASSPHRASE_FILE", raising=False)
    return tmp_path


def test_enrolling_prints_the_fingerprint_and_writes_the_card(at):
    code, text = site("enrol", at / "vault", "--name", "cleveland")

    card = EnrolmentCard.from_bytes((at / "cleveland.card.json").read_bytes())
    assert code == 0
    assert card.card.name == "cleveland"
    assert card.fingerprint in text
    assert "cleveland.card.json" in text
    assert "agreement pin" in text
    assert read_card(Vault(at / "vault")) == card


def test_a_card_goes_where_it_is_told_to_and_never_over_another(at):
    assert site("enrol", at / "a", "--name", "cleveland", "--card", "out.json")[0] == 0
    card = (at / "out.json").read_bytes()

    for path in ("out.json", "no-such-directory/card.json"):
        with pytest.raises(ConfigurationError, match="--card"):
            site("enrol", at / "b", "--name", "hungary", "--card", path)
    assert (at / "out.json").read_bytes() == card
    assert not (at / "b").exists()
    with pytest.raises(ConfigurationError, match="never overwritten"):
        site("enrol", at / "a", "--name", "hungary")
    assert not (at / "hungary.card.json").exists()


def test_a_directory_that_others_use_does_not_become_a_vault(at):
    at.chmod(0o755)
    (at / "notes.txt").write_text("ours")

    with pytest.raises(ConfigurationError, match="not empty, and others may enter it"):
        site("enrol", at, "--name", "cleveland")

    assert at.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in at.iterdir()] == ["notes.txt"]
    at.chmod(0o700)
    assert site("enrol", at, "--name", "cleveland")[0] == 0


def test_a_name_that_is_none_makes_nothing(at):
    with pytest.raises(ConfigurationError, match="a site's name"):
        site("enrol", at / "vault", "--name", "St. Elsewhere")
    assert not list(at.glob("*.json"))


def test_the_vault_can_be_named_by_the_environment(started, monkeypatch):
    monkeypatch.setenv("CIPHERWARD_VAULT", str(started.vault(1).directory))

    assert "round 1 of 3" in CliRunner().invoke(app, ["site", "status"], catch_exceptions=False).output


@pytest.fixture
def encrypted(started):
    """Encrypt a site's identity, as if it had enrolled so, and return its vault."""
    vault = started.vault(0)
    write_identity(vault, read_identity(vault), SecretBytes(PASSPHRASE.encode()))
    return vault


def test_a_new_identity_s_passphrase_is_asked_for_twice_and_not_shown(at):
    line = ("enrol", at / "vault", "--name", "cleveland", "--passphrase")
    with pytest.raises(ConfigurationError, match="nobody is there"):  # to type it a third time
        site(*line, answer=f"{PASSPHRASE}\nanother one\n")
    assert not (at / "cleveland.card.json").exists()

    code, text = site(*line, answer=f"{PASSPHRASE}\n" * 2)
    assert code == 0
    assert PASSPHRASE not in text
    assert is_encrypted(Vault(at / "vault"))
    assert read_identity(Vault(at / "vault"), SecretBytes(PASSPHRASE.encode())).card("cleveland")


def test_looking_and_ending_a_run_need_no_passphrase(encrypted, started):
    assert "round 1 of 3" in site("status", encrypted.directory)[1]
    assert site("forget", encrypted.directory, "--yes")[0] == 0
    assert not list(started.run_path(0).glob("*.secret"))


def test_giving_up_another_s_update_needs_the_passphrase(encrypted, started):
    with pytest.raises(ConfigurationError, match="nobody is there to type the passphrase"):
        site("overrule", encrypted.directory, "hospital-3", "--yes")
    with pytest.raises(ConfigurationError, match="does not open"):
        site("overrule", encrypted.directory, "hospital-3", "--yes", answer="correct horse battery stable\n")
    assert [entry for entry in journal(started, 0) if "overruled" in entry] == []

    code, text = site("overrule", encrypted.directory, "hospital-3", "--yes", answer=f"{PASSPHRASE}\n")
    assert code == 0
    assert PASSPHRASE not in text


def test_a_service_s_passphrase_comes_from_its_file(encrypted, tmp_path, monkeypatch):
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    path.chmod(0o600)
    monkeypatch.setenv("CIPHERWARD_PASSPHRASE_FILE", str(path))

    assert site("overrule", encrypted.directory, "hospital-3", "--yes")[0] == 0
    assert site("check", encrypted.directory)[0] == 0


def test_a_ready_site_is_told_so_line_by_line(founded):
    code, text = site("check", founded.vault(2).directory)

    assert code == 0
    assert "NOT OK" not in text
    assert "hospital-3" in text
    for name in ("identity", "node key", "agreement", "code", "secret", "table", "packages", "encryption", "disk"):
        assert f"\n{name} " in f"\n{text}"


def test_every_check_is_run_even_if_some_fail(founded):
    vault = founded.vault(2)
    vault.delete("data.csv")
    vault.path("consortium.secret").chmod(0o644)

    code, text = site("check", vault.directory, "--provider", "127.0.0.1:1")

    assert code == 1
    assert text.count("NOT OK") == 3
    assert "data.csv" in text
    assert "set it to 600" in text
    assert "127.0.0.1:1 does not answer" in text
    assert "are free" in text


def test_neither_passphrase_nor_keys_are_in_output_log_events_or_card(at, founded, caplog, capfd):
    vault, agreement = Vault(at / "vault"), founded.agreement
    texts = [site("enrol", vault.directory, "--name", "newcomer", "--passphrase", answer=f"{PASSPHRASE}\n" * 2)[1]]
    identity = read_identity(vault, SecretBytes(PASSPHRASE.encode()))
    joined = replace(agreement, roster=(*agreement.roster, identity.card("newcomer")))
    pin(vault, agreement=joined, consortium_secret=founded.member(0).consortium_secret)
    vault.write("data.csv", founded.vault(0).read("data.csv"))
    answers = (f"{PASSPHRASE}\n", "a passphrase of somebody else's\n", "")
    texts += [site("check", vault.directory, answer=answer)[1] for answer in answers]
    for damage in (vault.read("identity.secret")[:-1], b"cipherward identity 1"):
        vault.write("identity.secret", damage)
        texts.append(site("check", vault.directory, answer=f"{PASSPHRASE}\n")[1])
    assert [text.count("NOT OK") for text in texts] == [0, 0, 1, 1, 1, 1]

    raw, node = identity.to_secret().reveal(), vault.read("node.key")
    needles = [PASSPHRASE.encode(), b"a passphrase of somebody else's", node.splitlines()[2]]
    needles += [form for key in (raw[:32], raw[32:]) for form in (key, key.hex().encode(), base64.b64encode(key))]
    captured = capfd.readouterr()
    seen = "\n".join([*texts, caplog.text, captured.out, captured.err]).encode()
    seen += b"".join(path.read_bytes() for path in vault.directory.glob("*") if path.name not in ("node.key", ".lock"))
    seen += (at / "newcomer.card.json").read_bytes()
    for needle in needles:
        assert needle not in seen
    assert node.splitlines()[2] in vault.path("node.key").read_bytes()
