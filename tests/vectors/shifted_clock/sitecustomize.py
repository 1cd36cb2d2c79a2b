"""Shift the clock of every Python process that finds this on its path, by so many seconds as a variable says.

Trust: tests only.
"""

from __future__ import annotations

import datetime
import os
import time

SHIFT_SECONDS = float(os.environ["SHIFT_SECONDS"])

_true_time = time.time
_TrueDatetime = datetime.datetime


class _AnyDatetime(type(_TrueDatetime)):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _TrueDatetime)


class _ShiftedDatetime(_TrueDatetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return _TrueDatetime.fromtimestamp(time.time(), tz)


time.time = lambda: _true_time() + SHIFT_SECONDS
datetime.datetime = _ShiftedDatetime
