"""Admit hospitals' nodes at the SuperLink, and expel them.

Trust: runs at the provider. Who may join the network is the provider's to decide; who may join a sum is the
agreement's, which the provider has no say in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock

from protocol.enrolment import EnrolmentCard
from protocol.errors import ConfigurationError
from scripts.flower_commands import FlowerCommands, NodeId
from scripts.provider.directory import ProviderDirectory, write_whole
from scripts.received_files import read_card

_CARD: Final = ".card.json"
_NODE: Final = ".node"
_EXPELLED: Final = ".expelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedSite:
    """A hospital whose node the SuperLink lets in.

    Attributes:
        enrolment: Its card.
        node: Flower's id of its node.
    """

    enrolment: EnrolmentCard
    node: NodeId


def admitted_sites(directory: ProviderDirectory) -> dict[str, AdmittedSite]:
    """Return all admitted hospitals, by name."""
    return {
        (enrolment := read_card(path)).card.name: AdmittedSite(
            enrolment=enrolment, node=NodeId(_node_file(directory, enrolment.card.name).read_text(encoding="utf-8"))
        )
        for path in sorted(directory.admitted.glob(f"*{_CARD}"))
    }


def admit(directory: ProviderDirectory, commands: FlowerCommands, enrolment: EnrolmentCard, *, replace: bool) -> bool:
    """Let a hospital's node in.

    Args:
        directory: The provider's.
        commands: Talk to its SuperLink.
        enrolment: The hospital's card.
        replace: Whether another card may have been admitted under this name; its node is expelled.

    Returns:
        Whether anything changed; not if this card is admitted already.

    Raises:
        ConfigurationError: Another card is admitted under this name, or this node key was expelled.
        RunFailedError: The SuperLink refused.
    """
    name = enrolment.card.name
    with _locked(directory):
        old = admitted_sites(directory).get(name)
        is_known = old is not None and old.node in commands.nodes()  # not, if the database was lost
        if old is not None and old.enrolment == enrolment and is_known:
            return False
        if old is not None and old.enrolment != enrolment and not replace:
            raise ConfigurationError(
                f"{name} is admitted with another card, {old.enrolment.fingerprint}; if the hospital says by telephone "
                f"that {enrolment.fingerprint} is its new one, admit it with --replace"
            )
        if enrolment.node_key in _expelled_keys(directory):
            raise ConfigurationError(
                f"{name}: this node key was expelled, and Flower takes it never again; the hospital enrols once more, "
                "with a new node key"
            )
        if old is not None and is_known and old.enrolment.node_key == enrolment.node_key:
            node = old.node  # other keys of the roster, same node
        else:
            node = _register(directory, commands, enrolment)
            if old is not None and is_known:
                _unregister(directory, commands, old)
        write_whole(_node_file(directory, name), node.encode())
        write_whole(_card_file(directory, name), enrolment.to_bytes())
    return True


def expel(directory: ProviderDirectory, commands: FlowerCommands, name: str) -> None:
    """Let a hospital's node in no more.

    Raises:
        ConfigurationError: No such hospital is admitted.
        RunFailedError: The SuperLink refused.
    """
    with _locked(directory):
        site = admitted_sites(directory).get(name)
        if site is None:
            raise ConfigurationError(f"{name} is not admitted; `cipherward provider status` shows who is")
        _unregister(directory, commands, site)
        _card_file(directory, name).unlink()
        _node_file(directory, name).unlink()


def _register(directory: ProviderDirectory, commands: FlowerCommands, enrolment: EnrolmentCard) -> NodeId:
    public_key = directory.home / "node.pub"
    public_key.write_text(enrolment.node_key + "\n", encoding="utf-8")
    return commands.register(public_key, enrolment.card.name)


def _unregister(directory: ProviderDirectory, commands: FlowerCommands, site: AdmittedSite) -> None:
    if site.node in commands.nodes():
        commands.unregister(site.node)
    with (directory.admitted / _EXPELLED).open("a", encoding="utf-8") as keys:
        keys.write(site.enrolment.node_key + "\n")


def _expelled_keys(directory: ProviderDirectory) -> list[str]:
    path = directory.admitted / _EXPELLED
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@contextlib.contextmanager
def _locked(directory: ProviderDirectory) -> Iterator[None]:
    with FileLock(directory.admitted / ".lock"):
        yield


def _card_file(directory: ProviderDirectory, name: str) -> Path:
    return directory.admitted / f"{name}{_CARD}"


def _node_file(directory: ProviderDirectory, name: str) -> Path:
    return directory.admitted / f"{name}{_NODE}"
