"""A file of encrypted scores, which a device writes and only the key's holder can open.

`header | for each answer: count | row numbers | length | answer`, all numbers little-endian. It names rows and nothing
else of patients: whoever carries it learns which rows of a table have scores, and not which ones.

Trust: written by a device that cannot read it. It is not authenticated, as answers are not: whoever carries it can
swap scores.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from clients.prediction.service import MAX_ANSWER_BYTES
from protocol.errors import LengthError, MalformedError
from protocol.prediction.messages import Answer
from protocol.prediction.wire import ID_BYTES, Header

Rows = npt.NDArray[np.int64]

_MAGIC: Final = b"CWF1"
_HEADER: Final = struct.Struct(f"<4sI{ID_BYTES}s")
_LENGTH: Final = struct.Struct("<I")
_ROW_BYTES: Final = 4
_MOST_ROWS: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredRows:
    """One answer, and whose scores are in it.

    Attributes:
        rows: int64 (n,), row numbers, from 1.
        answer: The answer's bytes.
    """

    rows: Rows
    answer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFile:
    """Answers of one model.

    Attributes:
        model: Digest of the model's description.
        answers: All of them.
    """

    model: bytes
    answers: tuple[ScoredRows, ...]

    def to_bytes(self) -> bytes:
        """Encode."""
        parts = [_HEADER.pack(_MAGIC, len(self.answers), self.model)]
        for scored in self.answers:
            parts += [_LENGTH.pack(len(scored.rows)), scored.rows.astype("<u4").tobytes()]
            parts += [_LENGTH.pack(len(scored.answer)), scored.answer]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a file; its answers are only separated, and their counts compared with the rows.

        Raises:
            LengthError: It ends too early or too late, or a length in it is larger than any.
            MalformedError: It is no such file.
        """
        if len(data) < _HEADER.size:
            raise LengthError("score file bytes", expected=f"at least {_HEADER.size}", got=len(data))
        magic, count, model = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise MalformedError("score file", expected="its magic number", got="another")
        reader, answers = _Reader(data, _HEADER.size), []
        while reader.place < len(data):
            rows = np.frombuffer(reader.counted(_ROW_BYTES, _MOST_ROWS), dtype="<u4").astype(np.int64)
            answer = reader.counted(1, MAX_ANSWER_BYTES)
            patients = Header.of(answer, Answer.MAGIC, "answer").count
            if patients != len(rows):
                raise LengthError("rows of an answer", expected=patients, got=len(rows))
            answers.append(ScoredRows(rows=rows, answer=answer))
        if len(answers) != count:
            raise LengthError("answers of a score file", expected=count, got=len(answers))
        return cls(model=model, answers=tuple(answers))


class _Reader:
    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self.place = place

    def counted(self, width: int, most: int) -> bytes:
        """Read a count, and that many items of so many bytes."""
        count = int.from_bytes(self._next(_LENGTH.size), "little")
        if count > most:
            raise LengthError("length in a score file", expected=f"at most {most}", got=count)
        return self._next(count * width)

    def _next(self, size: int) -> bytes:
        start, self.place = self.place, self.place + size
        if self.place > len(self._data):
            raise LengthError("score file bytes", expected=f"at least {self.place}", got=len(self._data))
        return self._data[start : self.place]
