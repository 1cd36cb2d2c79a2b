"""Whom a provider lets in, at a real SuperLink."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from deployment import Hospital, provider_process

from protocol.errors import ConfigurationError
from scripts.flower_commands import FlowerCommands
from scripts.provider import admission
from scripts.provider.admission import admit, admitted_sites, expel
from scripts.provider.directory import write_whole
from scripts.received_files import read_card

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their environment")


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    with provider_process(tmp_path_factory.mktemp("admission") / "provider") as process:
        process.start()
        yield process


def admit_at(provider, hospital, *, replacing=False):
    return admit(provider.directory, provider.directory.commands(), hospital.enrolment(), replace=replacing)


def interrupt(*_, **__):
    raise KeyboardInterrupt


def dying_at(suffix):
    return lambda path, data: interrupt() if path.name.endswith(suffix) else write_whole(path, data)


def node_statuses(provider):
    return {node: state.status for node, state in provider.directory.commands().nodes().items()}


def test_a_card_is_admitted_once_and_another_one_only_in_its_place(provider):
    first, second = Hospital("cleveland"), Hospital("cleveland")

    assert admit_at(provider, first)
    assert not admit_at(provider, first)
    old = admitted_sites(provider.directory)["cleveland"]
    assert old.enrolment == first.enrolment()

    with pytest.raises(ConfigurationError, match="--replace") as refusal:
        admit_at(provider, second)
    assert first.enrolment().fingerprint in str(refusal.value)
    assert second.enrolment().fingerprint in str(refusal.value)
    assert admitted_sites(provider.directory)["cleveland"] == old

    assert admit_at(provider, second, replacing=True)
    new = admitted_sites(provider.directory)["cleveland"]
    assert new.enrolment == second.enrolment()
    statuses = node_statuses(provider)
    assert (statuses[old.node], statuses[new.node]) == ("unregistered", "registered")


def test_new_roster_keys_keep_the_node(provider):
    first = Hospital("basel")
    renewed = Hospital("basel", node_key=first.node_key)
    admit_at(provider, first)
    node = admitted_sites(provider.directory)["basel"].node

    assert admit_at(provider, renewed, replacing=True)

    assert admitted_sites(provider.directory)["basel"].node == node
    assert node_statuses(provider)[node] == "registered"


def test_an_expelled_site_is_gone_and_its_node_key_with_it(provider):
    hospital = Hospital("zurich")
    admit_at(provider, hospital)
    node = admitted_sites(provider.directory)["zurich"].node

    expel(provider.directory, provider.directory.commands(), "zurich")

    assert "zurich" not in admitted_sites(provider.directory)
    assert node_statuses(provider)[node] == "unregistered"
    with pytest.raises(ConfigurationError, match="was expelled"):
        admit_at(provider, hospital)
    assert admit_at(provider, Hospital("zurich", identity=hospital.identity))
    with pytest.raises(ConfigurationError, match="budapest is not admitted"):
        expel(provider.directory, provider.directory.commands(), "budapest")


@pytest.mark.parametrize("unwritten", [".node", ".card.json"])
def test_an_admission_that_dies_after_the_superlink_has_agreed_is_completed(provider, monkeypatch, unwritten):
    interrupted, other = Hospital("geneva"), Hospital("lugano")
    with monkeypatch.context() as patch:
        patch.setattr(admission, "write_whole", dying_at(unwritten))
        with pytest.raises(KeyboardInterrupt):
            admit_at(provider, interrupted)
    assert "geneva" not in admitted_sites(provider.directory)

    assert admit_at(provider, other)  # it comes in between, and is given its own node

    sites = admitted_sites(provider.directory)
    assert sites["geneva"].enrolment == interrupted.enrolment()
    assert sites["geneva"].node != sites["lugano"].node
    assert not admit_at(provider, interrupted)
    for name in ("geneva", "lugano"):
        assert node_statuses(provider)[sites[name].node] == "registered"
        expel(provider.directory, provider.directory.commands(), name)
        assert node_statuses(provider)[sites[name].node] == "unregistered"


@pytest.mark.parametrize("unwritten", [".node", ".card.json"])
def test_an_interrupted_replacement_is_completed_before_the_site_is_expelled(provider, monkeypatch, unwritten):
    first, second = Hospital("bern"), Hospital("bern")
    admit_at(provider, first)
    old, before = admitted_sites(provider.directory)["bern"].node, set(node_statuses(provider))
    with monkeypatch.context() as patch:
        patch.setattr(admission, "write_whole", dying_at(unwritten))
        with pytest.raises(KeyboardInterrupt):
            admit_at(provider, second, replacing=True)
    (new,) = set(node_statuses(provider)) - before

    expel(provider.directory, provider.directory.commands(), "bern")

    assert "bern" not in admitted_sites(provider.directory)
    assert {node_statuses(provider)[node] for node in (old, new)} == {"unregistered"}
    for hospital in (first, second):
        with pytest.raises(ConfigurationError, match="was expelled"):
            admit_at(provider, hospital)


def test_an_admission_that_dies_before_the_superlink_has_heard_of_it_leaves_nothing(provider, monkeypatch):
    hospital = Hospital("lucerne")
    with monkeypatch.context() as patch:
        patch.setattr(FlowerCommands, "register", interrupt)
        with pytest.raises(KeyboardInterrupt):
            admit_at(provider, hospital)

    with pytest.raises(ConfigurationError, match="lucerne is not admitted"):
        expel(provider.directory, provider.directory.commands(), "lucerne")
    assert admit_at(provider, hospital)


def test_an_expulsion_that_dies_after_the_superlink_has_agreed_can_be_repeated(provider, monkeypatch):
    hospital = Hospital("lausanne")
    admit_at(provider, hospital)
    node = admitted_sites(provider.directory)["lausanne"].node
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupt)
        with pytest.raises(KeyboardInterrupt):
            expel(provider.directory, provider.directory.commands(), "lausanne")
    assert node_statuses(provider)[node] == "unregistered"

    expel(provider.directory, provider.directory.commands(), "lausanne")

    assert "lausanne" not in admitted_sites(provider.directory)


def test_the_command_checks_all_cards_before_it_admits_one(provider, tmp_path):
    good = Hospital("longbeach").write_card(tmp_path)
    card = Hospital("forged").enrolment()
    forged = tmp_path / "forged.card.json"
    forged.write_bytes(replace(card, card=replace(card.card, name="budapest")).to_bytes())

    done = provider.command("provider", "admit", str(good), str(forged))

    assert done.returncode == 1
    assert "is no hospital's card" in done.stderr
    assert "longbeach" not in admitted_sites(provider.directory)


def test_a_card_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="nobody"):
        read_card(tmp_path / "nobody.card.json")
    (tmp_path / "other.card.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is no hospital's card"):
        read_card(tmp_path / "other.card.json")
