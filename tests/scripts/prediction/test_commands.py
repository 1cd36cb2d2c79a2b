"""The client's commands, from keys to scores, against a real TLS server with the real evaluation."""

from __future__ import annotations

import csv
import stat
from dataclasses import replace

import numpy as np
import pytest
from published import LOGISTIC, plain, trained_model
from scipy.special import expit
from served import InProcessService, Server, model_file, running
from typer.testing import CliRunner

from clients.prediction.key_store import KeyStore
from clients.secrets.enrolment import enrol, read_card
from clients.secrets.vault import Vault
from protocol.agreement import SiteId
from protocol.errors import AnswerRefusedError, ConfigurationError, ServiceError
from protocol.prediction.messages import key_id
from protocol.prediction.parameters import LINEAR
from protocol.terms import ModelTerms
from scripts.cli import app

INPUTS = 3


def cipherward(*line, vault=None, answer=None):
    """Run a command that succeeds and return what it printed."""
    arguments = [str(argument) for argument in line] + ([] if vault is None else ["--vault", str(vault.directory)])
    done = CliRunner().invoke(app, arguments, input=answer, catch_exceptions=False, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def trained():
    model = trained_model(INPUTS, LOGISTIC)
    return replace(model, mean=np.array([3.0, -0.5, 0.25]), deviation=np.array([2.0, 1.0, 0.5]))


@pytest.fixture
def vault(tmp_path):
    vault = Vault(tmp_path / "clinic")
    enrol(vault, SiteId("clinic"))
    return vault


@pytest.fixture(scope="module")
def running_server(tmp_path_factory):
    with running(Server(service=InProcessService(), cards={}), tmp_path_factory.mktemp("tls")) as server:
        yield server


@pytest.fixture
def server(running_server, trained, vault):
    running_server.service = InProcessService()
    running_server.service.offer(plain(trained))
    running_server.cards = {"clinic": read_card(vault).card}
    return running_server


@pytest.fixture
def at(server):
    """The options that say where the service is."""
    return ["--service", server.address, "--ca", server.authority]


@pytest.fixture
def patients(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("id,c0,c1,c2\nA,1.5,0,0.5\n\nB,oops,0,0.5\nC,,1,-0.25\n")
    return path


RECORDS = np.array([[1.5, 0, 0.5], [np.nan, 1, -0.25]])


def logits_of(trained):
    return trained.logits(trained.describe("model").standardised(RECORDS))


def lines_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def known_patients(tmp_path, logits):
    path = tmp_path / "known.csv"
    rows = ["1.5,0,0.5", ",1,-0.25"]
    path.write_text(
        "c0,c1,c2,logit\n" + "".join(f"{row},{logit:.6f}\n" for row, logit in zip(rows, logits, strict=True))
    )
    return path


def test_patients_are_scored_and_a_broken_row_says_why(at, vault, trained, patients, tmp_path):
    cipherward("keys", "create", vault=vault)
    known = known_patients(tmp_path, logits_of(trained))
    output = tmp_path / "scores.csv"

    said = cipherward(
        "predict", "--model", "model", "--input", patients, "--output", output, "--canaries", known, *at, vault=vault
    )

    first, broken, third = lines_of(output)
    assert [line["row"] + line["id"] for line in (first, broken, third)] == ["1A", "2B", "3C"]
    assert (broken["probability"], broken["logit"]) == ("", "")
    assert broken["error"] == "line 4: column 'c0': not a number"
    for line, logit in zip((first, third), logits_of(trained), strict=True):
        assert float(line["logit"]) == pytest.approx(logit, abs=LINEAR.tolerance)
        assert float(line["probability"]) == pytest.approx(expit(logit), abs=LINEAR.tolerance)
        assert line["error"] == ""
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert "the scores of 2 of 3 patients; what is wrong" in said
    assert "4/4 patients" in said
    assert "oops" not in said + output.read_text()


def test_a_wrong_canary_leaves_no_scores(at, vault, trained, patients, tmp_path):
    cipherward("keys", "create", vault=vault)
    known = known_patients(tmp_path, logits_of(trained) + 0.01)
    output = tmp_path / "scores.csv"

    with pytest.raises(AnswerRefusedError):
        cipherward(
            "predict", "--model", "model", "--input", patients, "--output", output, "--canaries", known, *at,
            vault=vault,
        )  # fmt: skip
    assert not output.exists()


def test_scores_replace_no_file_and_nothing_is_asked(server, at, vault, patients, tmp_path):
    (tmp_path / "scores.csv").write_text("mine")
    server.requests.clear()

    with pytest.raises(ConfigurationError, match="another file"):
        cipherward(
            "predict", "--model", "model", "--input", patients, "--output", tmp_path / "scores.csv", *at, vault=vault
        )
    assert server.requests == []


def test_a_personal_intercept_can_be_given(server, at, vault, trained, patients, tmp_path):
    cipherward("keys", "create", vault=vault)
    server.service.offer(plain(replace(trained, model=ModelTerms(personal=("output.bias",)))))

    cipherward(
        "predict", "--model", "model", "--input", patients, "--output", tmp_path / "s.csv", "--intercept", "-1.5", *at,
        vault=vault,
    )  # fmt: skip

    expected = logits_of(trained)[0] - trained.tensors["output.bias"][0] - 1.5
    assert float(lines_of(tmp_path / "s.csv")[0]["logit"]) == pytest.approx(expected, abs=LINEAR.tolerance)


def test_a_hospital_publishes_and_its_device_asks(server, at, vault, trained, patients, tmp_path):
    vault.write("models/last.safetensors", model_file(trained))
    device = Vault(tmp_path / "device")
    enrol(device, SiteId("ward-3"))
    server.cards["ward-3"] = read_card(device).card
    key, sealed, output = tmp_path / "clinic.cwk", tmp_path / "scores.cws", tmp_path / "scores.csv"

    cipherward("keys", "create", vault=vault)
    said = cipherward("site", "publish-model", "--name", "heart", "--for", "ward-3", *at, vault=vault)
    assert "clinic, ward-3" in said
    assert server.service.allowed["heart"] == ("ward-3",)
    cipherward("keys", "export", "--output", key, vault=vault)
    said = cipherward(
        "predict", "--model", "heart", "--input", patients, "--output", sealed, "--public-key", key, *at, vault=device
    )
    assert "row 2, line 4: column 'c0': not a number" in said
    cipherward("open-scores", "--input", sealed, "--output", output, vault=vault)

    lines = lines_of(output)
    assert [line["row"] for line in lines] == ["1", "3"]
    for line, logit in zip(lines, logits_of(trained), strict=True):
        assert float(line["logit"]) == pytest.approx(logit, abs=LINEAR.tolerance)
    with pytest.raises(ConfigurationError, match="published no such"):
        cipherward("open-scores", "--input", sealed, "--output", tmp_path / "mine.csv", vault=device)
    cipherward("site", "withdraw-model", "--name", "heart", *at, vault=vault)
    assert "heart" not in server.service.published


def test_a_model_that_is_not_as_exact_as_promised_is_not_published(server, at, vault, trained, monkeypatch):
    vault.write("models/last.safetensors", model_file(trained))
    cipherward("keys", "create", vault=vault)
    monkeypatch.setattr(type(trained), "logits", lambda model, records: np.zeros(len(records)))

    with pytest.raises(ConfigurationError, match="promised"):
        cipherward("site", "publish-model", "--name", "heart", *at, vault=vault)
    assert "heart" not in server.service.published


def test_options_for_reading_scores_do_not_go_with_a_public_key(at, vault, patients, tmp_path):
    with pytest.raises(ConfigurationError, match="leave --intercept"):
        cipherward(
            "predict", "--model", "model", "--input", patients, "--output", tmp_path / "s", "--public-key", patients,
            "--intercept", "1", *at, vault=vault,
        )  # fmt: skip


def test_a_vault_without_a_model_says_so(at, vault):
    with pytest.raises(ConfigurationError, match="no run has left a model"):
        cipherward("site", "publish-model", "--name", "heart", *at, vault=vault)


def test_keys_are_listed_rotated_and_deleted_here_and_at_the_service(server, at, vault, patients, tmp_path):
    cipherward("keys", "create", vault=vault)
    cipherward("predict", "--model", "model", "--input", patients, "--output", tmp_path / "s.csv", *at, vault=vault)
    assert len(server.service.keys) == 1
    cipherward("keys", "rotate", vault=vault)
    KeyStore(vault).current().public_key(LINEAR)  # not registered: the service does not know it

    listed = cipherward("keys", "list", vault=vault)
    assert "reads old answers" in listed
    assert all(key.hex() in listed for key in server.service.keys)

    assert "for good?" in cipherward("keys", "delete", "1", *at, vault=vault, answer="y\n")
    assert server.service.keys == {}
    assert [key.number for key in KeyStore(vault).stored_keys()] == [2]
    cipherward("keys", "delete", "--all", "--yes", *at, vault=vault)
    assert KeyStore(vault).stored_keys() == []


def test_public_keys_whose_key_is_gone_are_listed_and_deleted_at_the_service(server, at, vault, patients, tmp_path):
    lost, kept = (KeyStore(vault).create() if number == 0 else KeyStore(vault).rotate() for number in range(2))
    for key in (lost, kept):
        server.service.register_key(key.public_key(LINEAR))
    lost_id, kept_id = (key_id(key.public_key(LINEAR)).hex() for key in (lost, kept))
    KeyStore(vault).delete(lost)

    listed = cipherward("keys", "list", *at, vault=vault)
    (row,) = (line for line in listed.splitlines() if lost_id in line)
    assert "not in this vault" in row
    assert lost_id not in cipherward("keys", "list", vault=vault)

    assert "1 of its public keys" in cipherward("keys", "delete", "--lost", *at, vault=vault, answer="y\n")
    assert [key.hex() for key in server.service.keys] == [kept_id]
    with pytest.raises(ConfigurationError, match="no such"):
        cipherward("keys", "delete", "--lost", "--yes", *at, vault=vault)
    KeyStore(vault).delete(kept)
    cipherward("keys", "delete", "--all", "--yes", *at, vault=vault)
    assert server.service.keys == {}


def test_lost_keys_are_somebody_s(vault):
    with pytest.raises(ConfigurationError, match="--service"):
        cipherward("keys", "delete", "--lost", vault=vault)


def test_the_key_in_use_is_kept_here_and_at_the_service_while_there_are_older_ones(server, at, vault):
    KeyStore(vault).create()
    server.service.register_key(KeyStore(vault).rotate().public_key(LINEAR))

    with pytest.raises(ConfigurationError, match="keys rotate"):
        cipherward("keys", "delete", "2", "--yes", *at, vault=vault)

    assert len(server.service.keys) == 1
    assert [key.number for key in KeyStore(vault).stored_keys()] == [1, 2]


@pytest.mark.parametrize("which", [[], ["1", "--all"], ["--lost", "--all"]])
def test_deleting_needs_to_know_what(vault, which):
    with pytest.raises(ConfigurationError, match="--all"):
        cipherward("keys", "delete", *which, vault=vault)


def test_a_key_that_the_service_cannot_forget_is_kept(server, at, vault, patients, tmp_path, monkeypatch):
    cipherward("keys", "create", vault=vault)
    cipherward("predict", "--model", "model", "--input", patients, "--output", tmp_path / "s.csv", *at, vault=vault)

    def in_use(identifier):
        raise ServiceError(
            "A model is encrypted under this key: delete the model first.", status=409, cause="key-in-use"
        )

    monkeypatch.setattr(server.service, "delete_key", in_use)
    with pytest.raises(ServiceError, match="delete the model first"):
        cipherward("keys", "delete", "1", "--yes", *at, vault=vault)
    assert len(KeyStore(vault).stored_keys()) == 1


@pytest.mark.parametrize(
    "command",
    [
        ["predict"],
        ["site", "publish-model"],
        ["site", "withdraw-model"],
        ["open-scores"],
        ["keys"],
        ["keys", "delete"],
        ["keys", "export"],
    ],
)
def test_help_tells_what_a_command_is_for(command):
    assert "cipherward" in cipherward(*command, "--help")
