"""Read what nodes answer; nothing that a node sends stops a run, but secret material.

Trust: runs at the provider, on bytes from outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message

from protocol.envelope import ANSWER_PARTS, Request, pack_envelope, unpack_envelope
from protocol.errors import PeerRefusedError, ProtocolError
from strategies.journal import RunJournal


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One node's answer to one request.

    Attributes:
        node: Flower's node.
        request: What it was asked.
        parts: What it answered, for the taking; None if it could not, would not, or sent something else.
        is_refusal: Whether the site itself refused.
    """

    node: int
    request: Request
    parts: dict[str, bytes] | None
    is_refusal: bool = False


def make_request(request: Request, node: int, **parts: bytes) -> Message:
    """Make a message to a node."""
    return Message(pack_envelope(parts), dst_node_id=node, message_type=request)


def read_replies(messages: Iterable[Message], journal: RunJournal) -> Iterator[Reply]:
    """Yield each reply as it comes; what is wrong with one is recorded.

    Args:
        messages: The nodes' messages.
        journal: Told of what was not answered.
    """
    for message in messages:
        node, kind = message.metadata.src_node_id, message.metadata.message_type
        if kind not in set(Request):  # Flower's own, about a message that expired; or a node that makes up a kind
            journal.event("no-answer", node=str(node), request=kind)
            continue
        request = Request(kind)
        if message.has_error():
            journal.event("no-answer", node=str(node), request=str(request), code=message.error.code)
            yield Reply(node=node, request=request, parts=None)
            continue
        try:
            parts = unpack_envelope(message.content, ANSWER_PARTS[request])
        except PeerRefusedError:
            journal.event("refused-by-site", node=str(node), request=str(request))
            yield Reply(node=node, request=request, parts=None, is_refusal=True)
        except ProtocolError as error:
            journal.event("refused", node=str(node), request=str(request), reason=str(error))
            yield Reply(node=node, request=request, parts=None)
        else:
            yield Reply(node=node, request=request, parts=parts)
