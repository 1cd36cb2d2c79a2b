"""What was served: a JSON line per client's request, for the provider's own records and for its clients' questions.

Strangers' requests are counted in the metrics alone: a million of them would push what was served out of the files.

Trust: runs at the provider; holds names, counts, sizes and times, and nothing of a body.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

_LARGEST_BYTES: Final = 16 << 20
_EARLIER_FILES: Final = 9


@dataclass(slots=True, kw_only=True)
class ServedRequest:
    """One request, as far as it is known; whoever learns more of it fills that in.

    Attributes:
        time: When it came, seconds since 1970.
        call: Method and route, with the route's variables unfilled; empty for an address that is none.
        client: Who signed it; empty if that is not known.
        model: Which model it is about, if there is such a one.
        patients: How many were charged.
        bytes_in: Of the body.
        bytes_out: Of the answer's.
        seconds: From its head until its answer was given away.
        status: Of the answer; 0 if there was none.
        cause: Why it was refused, empty if it was not.
    """

    time: float
    call: str = ""
    client: str = ""
    model: str = ""
    patients: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    status: int = 0
    cause: str = ""


class ServedLog:
    """A file of them; when it has grown, it becomes an earlier one, of which so many are kept.

    Args:
        path: The file.
        largest_bytes: Size of one.
    """

    def __init__(self, path: Path, largest_bytes: int = _LARGEST_BYTES) -> None:
        # not by name: nothing else writes to it, and no configuration of logging reaches it
        self._logger = logging.Logger("served", logging.INFO)
        self._handler = RotatingFileHandler(path, maxBytes=largest_bytes, backupCount=_EARLIER_FILES, encoding="utf-8")
        self._logger.addHandler(self._handler)

    def write(self, served: ServedRequest) -> None:
        """Add a line, if it is known whose request it was."""
        if not served.client:
            return
        line = {**asdict(served), "time": round(served.time, 3), "seconds": round(served.seconds, 4)}
        self._logger.info(json.dumps(line))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()
