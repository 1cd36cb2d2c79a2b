"""From the sites' decisions to a published model, as people type it: `site release-model`, then `service publish`."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from protocol.agreement import Agreement
from protocol.errors import ConfigurationError, ReleaseIncompleteError
from protocol.prediction.release import ReleaseDecision, check_release
from scripts.cli import app
from scripts.prediction.publication_commands import publish

PURPOSE = "Cardio Cloud AG:  scoring referrals"

service = typer.Typer()
service.command()(publish)


@pytest.fixture
def ended(summed):
    for site in summed.everyone:
        summed.close(site)
    return summed


@pytest.fixture
def provider(tmp_path):
    directory = tmp_path / "provider"
    line = ["provider", "init", "--directory", str(directory), "--host", "127.0.0.1"]
    assert CliRunner().invoke(app, line, catch_exceptions=False).exit_code == 0
    return directory


def release(federation, site, output, *options, answer=None):
    line = ["site", "release-model", "--vault", str(federation.vault(site).directory), "--for", PURPOSE]
    line += ["--output", str(output), *options]
    done = CliRunner().invoke(app, line, input=answer, catch_exceptions=False, env={"COLUMNS": "300"})
    return done.exit_code, done.output


def published(*arguments):
    done = CliRunner().invoke(service, list(map(str, arguments)), catch_exceptions=False)
    return done.exit_code, done.output


def test_nothing_is_released_before_people_agree_to_what_they_are_told(ended, tmp_path):
    output = tmp_path / "released"

    code, text = release(ended, 1, output, answer="n\n")

    assert code == 1
    assert not output.exists()
    assert "hospital-2: release this model, for good?" in text
    assert "can read it, copy it" in text
    assert "those of 4 patients" in text
    assert "for       Cardio Cloud AG: scoring referrals" in text
    assert "model_released" not in {event["event"] for event in ended.vault(1).lines("events.jsonl")}


def test_what_four_hospitals_release_is_published_and_three_are_not_enough(ended, tmp_path, provider):
    outputs = [tmp_path / f"released-{site}" for site in ended.everyone]
    for site, output in enumerate(outputs):
        code, text = release(ended, site, output, "--yes")
        assert code == 0
        assert f"hospital-{site + 1}.release.json" in text
    model = outputs[0] / "model.safetensors"
    assert len({(output / "model.safetensors").read_bytes() for output in outputs}) == 1
    decisions = [output / f"hospital-{site + 1}.release.json" for site, output in enumerate(outputs)]
    agreement = ended.vault(0).path("agreement.json")
    made = [ReleaseDecision.from_bytes(path.read_bytes()) for path in decisions]
    check_release(Agreement.from_bytes(agreement.read_bytes()), made, model.read_bytes())

    line = ["--name", "heart", "--agreement", agreement, "--directory", provider]
    with pytest.raises(ReleaseIncompleteError, match="hospital-4"):
        published(model, *decisions[:3], *line)
    assert not list((provider / "prediction").rglob("*.*"))

    code, text = published(model, *decisions, *line)
    assert code == 0
    assert "released by hospital-1, hospital-2, hospital-3, hospital-4, for: Cardio Cloud AG: scoring referrals" in text
    assert (provider / "prediction/models/heart/model.safetensors").read_bytes() == model.read_bytes()


def test_hospitals_on_one_machine_may_write_into_one_directory_and_nothing_there_is_overwritten(ended, tmp_path):
    assert release(ended, 0, tmp_path, "--yes")[0] == 0
    assert release(ended, 1, tmp_path, "--yes")[0] == 0
    before = (tmp_path / "hospital-1.release.json").read_bytes()

    with pytest.raises(ConfigurationError, match=r"hospital-1\.release\.json is there already"):
        release(ended, 0, tmp_path, "--yes")
    (tmp_path / "model.safetensors").write_bytes(b"another")
    with pytest.raises(ConfigurationError, match=r"model\.safetensors is there already"):
        release(ended, 2, tmp_path, "--yes")

    assert (tmp_path / "hospital-1.release.json").read_bytes() == before
    assert not (tmp_path / "hospital-3.release.json").exists()


def test_it_has_to_be_said_whose_the_model_is(ended, tmp_path, provider):
    release(ended, 0, tmp_path, "--yes")
    model, decision = tmp_path / "model.safetensors", tmp_path / "hospital-1.release.json"
    agreement = ended.vault(0).path("agreement.json")
    line = ["--name", "heart", "--directory", provider]

    for wrong in ([], [decision], ["--agreement", agreement], [decision, "--own"], ["--agreement", agreement, "--own"]):
        with pytest.raises(ConfigurationError, match="say whose model it is"):
            published(model, *wrong, *line)

    code, text = published(model, "--own", *line)
    assert code == 0
    assert "the provider's own" in text


def test_a_file_that_is_no_decision_is_named(ended, tmp_path, provider):
    release(ended, 0, tmp_path, "--yes")
    model, agreement = tmp_path / "model.safetensors", ended.vault(0).path("agreement.json")

    with pytest.raises(ConfigurationError, match=r"agreement\.json is no hospital's decision"):
        published(model, agreement, "--name", "heart", "--agreement", agreement, "--directory", provider)


def test_a_directory_that_is_no_provider_s_gets_no_model(ended, tmp_path):
    release(ended, 0, tmp_path, "--yes")

    with pytest.raises(ConfigurationError, match="is no provider's directory"):
        published(tmp_path / "model.safetensors", "--own", "--name", "heart", "--directory", tmp_path)
