"""Four hospitals train, and what they learnt scores patients whom the service does not see.

The run is a whole one, in this process; the service is `cipherward serve` in its own, over TLS; everything else is what
people type. The measure is the model in each hospital's vault: what it says in plaintext of the patients that its run
held out, and what training itself has written down about them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import expit
from service_process import served
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from clients.data.table import fold_of_rows
from clients.data.table_file import encode_table, parse_table_file
from clients.prediction import EncryptedPredictor
from clients.run.membership import AGREEMENT, TABLE
from clients.run.results import SCORES, model_path, scores_from_csv
from clients.secrets.vault import Vault
from conf import compose
from protocol.errors import ConfigurationError, ServiceError
from protocol.prediction.model_file import TrainedModel
from scripts.cli import app
from scripts.provider.directory import ProviderDirectory
from server.prediction.problems import Cause

pytestmark = pytest.mark.xdist_group("prediction")  # so that the run is made once

TOLERANCE = 1e-4
"""Of a logit."""

MODEL = "heart-disease"
HELD_OUT = {"cleveland": 76, "hungarian": 74, "switzerland": 31, "va": 50}


def cipherward(*line, vault=None):
    """Run a command that succeeds and return what it printed."""
    arguments = list(map(str, line)) + ([] if vault is None else ["--vault", str(vault.directory)])
    done = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return done.output


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A hospital's patients whom its run held out."""

    vault: Vault
    csv: bytes
    """As its table has them, but for the outcome."""
    features: np.ndarray
    labels: np.ndarray

    @property
    def model(self) -> TrainedModel:
        return TrainedModel.from_bytes(self.vault.read(model_path("last")))

    @property
    def logits(self) -> np.ndarray:
        """Return what the model in the vault says of them, in plaintext."""
        return self.model.logits(self.model.describe(MODEL).standardised(self.features))


def held_out(federation, position) -> HeldOut:
    vault, terms = federation.vault(position), federation.agreement.terms
    file = parse_table_file(vault.read(TABLE), TABLE, terms.data)
    table = encode_table(file, terms.data)
    folds = fold_of_rows(table.labels, folds=terms.data.folds, seed=terms.training.seed, site=vault.directory.name)
    rows = np.flatnonzero(folds == terms.data.fold)
    chosen = file.chosen(rows.tolist())
    lines = (",".join(cells[:-1]) + "\n" for cells in chosen.rows)
    return HeldOut(vault=vault, csv="".join(lines).encode(), features=table.features[rows], labels=table.labels[rows])


@pytest.fixture(scope="module")
def federation(founded_once, tmp_path_factory):
    """The four hospitals, after their run."""
    made = type(founded_once).found(tmp_path_factory.mktemp("heart") / "run", compose(["experiment=heart_disease"]))
    made.open()
    made.run_all()
    for site in made.everyone:
        made.close(site)
    return made


@pytest.fixture(scope="module")
def hospitals(federation):
    return {name: held_out(federation, position) for position, name in enumerate(HELD_OUT)}


@pytest.fixture(scope="module")
def provider(federation, hospitals, tmp_path_factory):
    """A provider's directory, with the model that the four hospitals have released."""
    directory = ProviderDirectory(tmp_path_factory.mktemp("provider") / "provider")
    released = tmp_path_factory.mktemp("released")
    cipherward("provider", "init", "--host", "localhost", "--directory", directory.path)
    for patients in hospitals.values():
        cipherward("site", "release-model", "--for", "a test", "--output", released, "--yes", vault=patients.vault)
    agreement = federation.vault(0).path(AGREEMENT)
    line = ["--name", MODEL, "--agreement", agreement, "--directory", directory.path]
    cipherward("service", "publish", released / "model.safetensors", *released.glob("*.release.json"), *line)
    return directory


@pytest.fixture(scope="module")
def address(provider):
    with served(provider) as (http, _, _):
        yield f"{http.base_url.host}:{http.base_url.port}"


@pytest.fixture(scope="module")
def at(provider, address):
    """The options that say where the service is."""
    return ["--service", address, "--ca", provider.tls.authority]


@pytest.fixture
def enrolled(tmp_path):
    """Enrol someone who trains nothing."""

    def enrol(name, place="vaults"):
        (tmp_path / place).mkdir(exist_ok=True)
        vault = tmp_path / place / name
        card = tmp_path / place / f"{name}.card.json"
        cipherward("site", "enrol", "--name", name, "--vault", vault, "--card", card)
        cipherward("keys", "create", "--vault", vault)
        return Vault(vault), card

    return enrol


@pytest.fixture
def admitted(enrolled, provider):
    """Enrol and admit someone who trains nothing."""

    def admit(name):
        vault, card = enrolled(name)
        cipherward("service", "admit", card, "--directory", provider.path)
        return vault

    return admit


def test_a_broken_row_is_told_and_the_others_are_scored(admitted, at, tmp_path):
    table, scores = tmp_path / "new.csv", tmp_path / "scores.csv"
    table.write_text("63,1,4,140,260,0,1,112,1,3,2,?,?\n63,1,4,high,260,0,1,112,1,3,2,?,?\n")

    line = ["--model", MODEL, "--input", table, "--output", scores, "--intercept", "0.5"]
    said = cipherward("predict", *line, *at, vault=admitted("geneva"))

    assert "has the scores of 1 of 2 patients; what is wrong with the others is in its last column" in said
    with scores.open() as file:
        scored, broken = csv.DictReader(file)
    assert (bool(scored["logit"]), scored["error"]) == (True, "")
    assert (broken["logit"], broken["error"]) == ("", "line 2: column 'trestbps': not a number")


@pytest.fixture(scope="module")
def scored(hospitals, provider, at, tmp_path_factory):
    """Each hospital's logits, as `cipherward predict` writes them for its own held-out patients."""
    directory, logits = tmp_path_factory.mktemp("scored"), {}
    for name, patients in hospitals.items():
        cipherward("service", "admit", patients.vault.path("card.json"), "--directory", provider.path)
        cipherward("keys", "create", vault=patients.vault)
        table, scores = directory / f"{name}.csv", directory / f"{name}.scores.csv"
        table.write_bytes(patients.csv)
        cipherward("predict", "--model", MODEL, "--input", table, "--output", scores, *at, vault=patients.vault)
        logits[name] = logits_in(scores)
    return logits


def logits_in(path):
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["row"]) for line in lines] == list(range(1, len(lines) + 1))
    logits, probabilities = (np.array([float(line[column]) for line in lines]) for column in ("logit", "probability"))
    np.testing.assert_allclose(probabilities, expit(logits), rtol=1e-5)  # it is written with six digits
    return logits


def auc(labels, logits):
    return round(roc_auc_score(labels, logits), 4)


def pooled(parts):
    return np.concatenate(list(parts))


def test_held_out_patients_get_the_scores_of_the_model_in_their_hospital_s_vault(scored, hospitals):
    assert {name: len(logits) for name, logits in scored.items()} == HELD_OUT
    for name, patients in hospitals.items():
        np.testing.assert_allclose(scored[name], patients.logits, rtol=0, atol=TOLERANCE)


def test_scores_are_the_ones_that_training_has_measured_itself_by(scored, hospitals):
    for name, patients in hospitals.items():
        labels, _, federated = scores_from_csv(patients.vault.read(SCORES))
        np.testing.assert_array_equal(labels, patients.labels)
        np.testing.assert_allclose(expit(scored[name]), federated, rtol=0, atol=TOLERANCE)


def test_encryption_changes_no_auc(scored, hospitals):
    for name, patients in hospitals.items():
        assert auc(patients.labels, scored[name]) == auc(patients.labels, patients.logits), name
    labels = pooled(patients.labels for patients in hospitals.values())
    plain = pooled(patients.logits for patients in hospitals.values())
    assert auc(labels, pooled(scored.values())) == auc(labels, plain)
    assert 0.8 < auc(labels, plain) < 0.95


def test_personal_intercepts_are_not_at_the_service(scored, hospitals, provider):
    own = [float(patients.model.tensors["output.bias"][0]) for patients in hospitals.values()]
    kept = b"".join(path.read_bytes() for path in provider.prediction.path.rglob("*") if path.is_file())

    assert len({*own, 0.0}) == 5
    assert all(np.float64(bias).tobytes() not in kept and repr(bias).encode() not in kept for bias in own)
    weight = hospitals["va"].model.tensors["output.weight"]
    assert weight.tobytes() in kept  # without which the line above could not fail


def test_a_clinic_without_a_model_brings_its_own_intercept(admitted, hospitals, provider, address):
    clinic, patients = admitted("zurich"), hospitals["va"]
    where = (clinic, address, provider.tls.authority, MODEL)

    with pytest.raises(ConfigurationError, match="--intercept"):
        EncryptedPredictor.from_vault(*where)
    own = float(patients.model.tensors["output.bias"][0])
    with EncryptedPredictor.from_vault(*where, intercept=own) as predictor:
        probabilities = predictor.predict_proba(patients.features)

    expected = expit(patients.logits)
    np.testing.assert_allclose(probabilities, np.column_stack([1 - expected, expected]), rtol=0, atol=TOLERANCE)


def test_a_device_s_scores_are_read_by_its_hospital_alone(scored, admitted, hospitals, provider, at, tmp_path):
    hospital, ward = hospitals["cleveland"], admitted("ward-3")
    cipherward("site", "publish-model", "--name", "cleveland-heart", "--for", "ward-3", *at, vault=hospital.vault)
    cipherward("keys", "export", "--output", tmp_path / "cleveland.cwk", vault=hospital.vault)
    table, sealed, scores = tmp_path / "new.csv", tmp_path / "new.cws", tmp_path / "scores.csv"
    table.write_bytes(hospital.csv)

    line = ["--model", "cleveland-heart", "--input", table, "--public-key", tmp_path / "cleveland.cwk"]
    cipherward("predict", *line, "--output", sealed, *at, vault=ward)
    with pytest.raises(ConfigurationError, match="has published no such"):
        cipherward("open-scores", "--input", sealed, "--output", scores, vault=ward)
    with pytest.raises(ServiceError) as refused:
        cipherward("predict", *line, "--output", tmp_path / "va.cws", *at, vault=hospitals["va"].vault)
    cipherward("open-scores", "--input", sealed, "--output", scores, vault=hospital.vault)

    assert refused.value.title == Cause.UNKNOWN_MODEL.title
    opened = logits_in(scores)
    np.testing.assert_allclose(opened, hospital.logits, rtol=0, atol=TOLERANCE)
    assert auc(hospital.labels, opened) == auc(hospital.labels, hospital.logits)
    kept = b"".join(path.read_bytes() for path in (provider.prediction.models / "cleveland-heart").iterdir())
    assert not any(np.float64(weight).tobytes() in kept for weight in hospital.model.tensors["output.weight"][0])


def test_a_stranger_under_an_admitted_name_and_a_clinic_that_was_expelled_get_the_same_refusal(
    admitted, enrolled, provider, address
):
    admitted("bern")
    stranger, _ = enrolled("bern", "elsewhere")
    leaving = admitted("basel")
    where = (address, provider.tls.authority, MODEL)

    with EncryptedPredictor.from_vault(leaving, *where, intercept=0.0) as predictor:
        records = np.zeros((1, predictor.description.inputs))
        assert predictor.predict(records).shape == (1,)
        cipherward("service", "expel", "basel", "--directory", provider.path)
        for ask in (
            lambda: predictor.predict(records),
            lambda: EncryptedPredictor.from_vault(leaving, *where, intercept=0.0),
            lambda: EncryptedPredictor.from_vault(stranger, *where, intercept=0.0),
        ):
            with pytest.raises(ServiceError) as refused:
                ask()
            assert (refused.value.status, refused.value.title) == (401, Cause.BAD_SIGNATURE.title)
            assert "cipherward service admit" in refused.value.__notes__[0]
