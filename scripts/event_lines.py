"""Tell people what a long-running command does: a line per event, for a person or as JSON.

Trust: runs wherever the command does. Events hold names, sizes and times; never values, keys or records.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime

Tell = Callable[..., None]
"""Called with an event's name, a sentence for people, and fields."""


def event_lines(*, is_json: bool) -> Tell:
    """Return what writes events to standard error.

    Args:
        is_json: One JSON object per line with "event", "time" (seconds since 1970) and "text", for log collectors; else
            the time of day and the sentence.
    """

    def tell(event: str, text: str, **fields: object) -> None:
        if is_json:
            line = json.dumps({"event": event, "time": round(time.time(), 3), "text": text, **fields})
        else:
            line = f"{datetime.now().astimezone():%H:%M:%S} {text}"
        print(line, file=sys.stderr, flush=True)

    return tell
