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
_REGISTERING: Final = ".registering"
"""The card whose node is being registered, and below it a line for each node that was there before."""


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
        _complete_interrupted(directory, commands)
        old, registered = admitted_sites(directory).get(name), _registered(commands)
        is_known = old is not None and old.node in registered  # not, if the database was lost
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
            node = _register(directory, commands, enrolment, registered)
        _complete(directory, commands, enrolment, node)
    return True


def expel(directory: ProviderDirectory, commands: FlowerCommands, name: str) -> None:
    """Let a hospital's node in no more.

    Raises:
        ConfigurationError: No such hospital is admitted.
        RunFailedError: The SuperLink refused.
    """
    with _locked(directory):
        _complete_interrupted(directory, commands)
        site = admitted_sites(directory).get(name)
        if site is None:
            raise ConfigurationError(f"{name} is not admitted; `cipherward provider status` shows who is")
        _unregister(directory, commands, site)
        _card_file(directory, name).unlink()
        _node_file(directory, name).unlink()


def _register(
    directory: ProviderDirectory, commands: FlowerCommands, enrolment: EnrolmentCard, registered: list[NodeId]
) -> NodeId:
    # first: Flower takes a key once and tells nobody whose node is whose, so the answer must not be lost with us
    write_whole(directory.admitted / _REGISTERING, "\n".join([enrolment.to_bytes().decode(), *registered]).encode())
    public_key = directory.home / "node.pub"
    public_key.write_text(enrolment.node_key + "\n", encoding="utf-8")
    return commands.register(public_key, enrolment.card.name)


def _complete(directory: ProviderDirectory, commands: FlowerCommands, enrolment: EnrolmentCard, node: NodeId) -> None:
    """Keep whose a registered node is, in place of the one that was admitted under its name; may be done again."""
    name = enrolment.card.name
    old = admitted_sites(directory).get(name)
    if old is not None and old.enrolment.node_key != enrolment.node_key and old.node != node:
        _unregister(directory, commands, old)
    write_whole(_node_file(directory, name), node.encode())
    write_whole(_card_file(directory, name), enrolment.to_bytes())
    (directory.admitted / _REGISTERING).unlink(missing_ok=True)


def _complete_interrupted(directory: ProviderDirectory, commands: FlowerCommands) -> None:
    """Complete the admission that ended between the SuperLink's word and ours, if there is one."""
    path = directory.admitted / _REGISTERING
    if not path.exists():
        return
    card, *before = path.read_text(encoding="utf-8").splitlines()
    new = [node for node in _registered(commands) if node not in before]
    if len(new) == 1:  # more, if people have registered nodes without us: then nobody knows whose they are
        _complete(directory, commands, EnrolmentCard.from_bytes(card.encode()), new[0])
    path.unlink(missing_ok=True)


def _unregister(directory: ProviderDirectory, commands: FlowerCommands, site: AdmittedSite) -> None:
    is_registered = site.node in _registered(commands)
    with (directory.admitted / _EXPELLED).open("a", encoding="utf-8") as keys:
        keys.write(site.enrolment.node_key + "\n")  # first: whoever is interrupted here can expel again
    if is_registered:
        commands.unregister(site.node)


def _registered(commands: FlowerCommands) -> list[NodeId]:
    """Return the nodes that the SuperLink lets in."""
    return [node for node, state in commands.nodes().items() if state.status != "unregistered"]


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
