"""Windows: when new machines may be taken out of service.

A calendar window opens at every wall-clock time of its cron expression, in its timezone, and stays
open for its duration of *elapsed* seconds. Every wall-clock time opens it exactly once: one that
the clock change skips (02:30 on the day when 02:00 becomes 03:00) opens at the first instant after the
gap, and one that the clock shows twice opens at the first of the two.

A stretch in which openings overlap or touch is one spell. Spells are followed for
``LOOK`` seconds both ways; one that is longer appears cut there.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

from rebootd.core.inputs import DAY, bad_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rebootd.core.model import OpenWindow
    from rebootd.core.policy import Policy

LOOK = 8 * DAY
BACK_DAYS = 35
"""How many days back the end of the last window is looked for: every month has its own at least once."""
MAX_OPENINGS = 48
"""How often a day a calendar window may open; more would be a mistake, and slow to plan with."""
MAX_WINDOW = 31 * DAY


class CalendarWindow(msgspec.Struct, frozen=True):
    """A recurring window. ``start`` is a cron expression of five fields, ``duration`` seconds,
    ``timezone`` an IANA name. Made by :func:`rebootd.core.policy.parse_policy`, which checks all of it.
    """

    name: str
    start: str
    duration: float
    timezone: str = "UTC"


class WindowVerdict(msgspec.Struct, frozen=True):
    """Whether new machines may go out of service now.

    ``name`` is a window of the open stretch, the last one of it (``""``: none is open, or none is
    needed). ``until`` is when the stretch ends (None: not open, or open without end), ``next`` when the
    next stretch begins (None: none is known).
    """

    open: bool
    name: str = ""
    until: float | None = None
    next: float | None = None


def check_window(window: CalendarWindow, field: str) -> None:
    """Raises InvalidInput unless ``window`` has a known timezone and a cron expression that fires."""
    _check_timezone(window.timezone, f"{field}.timezone")
    _check_start(window.start, f"{field}.start")


def _check_timezone(name: str, field: str) -> None:
    # "localtime" and a few others name what a host happens to be set to, so leaders would differ.
    if re.fullmatch(r"[A-Za-z0-9_+/-]{1,64}", name) and name not in ("localtime", "posixrules", "Factory"):
        # OSError: the name is a folder of the timezone database.
        with contextlib.suppress(ZoneInfoNotFoundError, ValueError, OSError):
            ZoneInfo(name)
            return
    raise bad_input(field, name, "an IANA timezone such as Europe/Berlin or UTC")


def _check_start(start: str, field: str) -> None:
    accepted = "a cron expression of five fields (minute hour day month weekday) such as 0 2 * * MON-FRI"
    if len(start) > 200 or len(start.split()) != 5:
        raise bad_input(field, start, accepted)
    try:
        cron = CronSim(start, datetime(2024, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        never = _fires_in_other_months(start)
        why = ", one that ever fires: no month of these has that day" if never else f" ({error})"
        raise bad_input(field, start, accepted + why) from error
    # cronsim gives up with StopIteration after 50 years without a match.
    if next(cron, None) is None:
        raise bad_input(field, start, f"{accepted}, one that ever fires")
    if len(cron.minutes) * len(cron.hours) > MAX_OPENINGS:
        raise bad_input(field, start, f"{accepted}, with at most {MAX_OPENINGS} openings a day")


def _fires_in_other_months(start: str) -> bool:
    """Whether only the day and the month do not go together: 30 February."""
    minute, hour, day, _, weekday = start.split()
    try:
        CronSim(f"{minute} {hour} {day} * {weekday}", datetime(2024, 1, 1, tzinfo=UTC))
    except CronSimError:
        return False
    return True


def active(window: CalendarWindow, now: float) -> tuple[float, float] | None:
    """Start and end of the spell that is open at ``now`` (start included, end not), or None."""
    for start, end in _spells(window, int(now // DAY)):
        if start <= now < end:
            return start, end
    return None


def next_opening(window: CalendarWindow, now: float) -> float | None:
    """When the next spell after ``now`` begins; None if none is known within cron's 50 years."""
    return next((start for start, _ in _spells(window, int(now // DAY)) if start > now), None)


@lru_cache(maxsize=512)
def _spells(window: CalendarWindow, day: int) -> tuple[tuple[float, float], ...]:
    """The spells that touch a UTC day (counted since the Unix epoch), and the one after it.

    A pure function of its arguments and the timezone database, computed once a day and window.
    """
    begin, stop = day * DAY, (day + 1) * DAY
    spells: list[tuple[float, float]] = []
    for opening in _openings(window, begin - LOOK - window.duration):
        if spells and opening <= spells[-1][1]:
            if opening > stop + LOOK:
                break
            spells[-1] = (spells[-1][0], opening + window.duration)
            continue
        spells.append((opening, opening + window.duration))
        if opening >= stop:
            break
    return tuple(spell for spell in spells if spell[1] > begin)


def _openings(window: CalendarWindow, after: float) -> Iterator[float]:
    """The openings later than ``after``, in order; two can fall on one instant after a clock change."""
    zone = ZoneInfo(window.timezone)
    # Without a timezone cronsim counts wall-clock times; its own handling of clock changes skips
    # openings in the gap when the hour field is a wildcard such as */2.
    for wall in CronSim(window.start, datetime.fromtimestamp(after, zone).replace(tzinfo=None, fold=0)):
        opening = _instant(wall, zone)
        if opening > after:
            yield opening


def _instant(wall: datetime, zone: ZoneInfo) -> float:
    """The instant of a wall-clock time: the first of two, or the end of the gap that it falls into."""
    late = wall.replace(tzinfo=zone, fold=0).timestamp()
    early = wall.replace(tzinfo=zone, fold=1).timestamp()
    if early >= late:
        return late
    # In a gap, fold 0 reckons with the offset before it and so lands after the change, fold 1 before it.
    low, high = int(early), int(late)
    before = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return float(high)


def judge_windows(policy: Policy, open_windows: Iterable[OpenWindow], now: float) -> WindowVerdict:
    """Whether new machines may go out of service at ``now``, until when, and when again.

    Open without end if the policy defines no calendar window and does not require one. Otherwise
    open while any calendar window or any one-shot window is.
    """
    if not policy.windows and not policy.window_required:
        return WindowVerdict(open=True)
    once = [(window.start, window.end, window.id) for window in open_windows]
    name, until = "", now
    # Windows that follow upon each other without a break make one stretch; LOOK bounds how far.
    while until <= now + LOOK:
        last = max(_open_at(policy, once, until), default=None)
        if last is None:
            break
        until, name = last
    upcoming = [start for start, end, _ in once if start > until and end > start]
    upcoming += [start for window in policy.windows if (start := next_opening(window, until)) is not None]
    following = min(upcoming, default=None)
    return WindowVerdict(open=until > now, name=name, until=until if until > now else None, next=following)


def opened_since(policy: Policy, open_windows: Iterable[OpenWindow], now: float) -> float:
    """When the first of the windows that are open at ``now`` has opened; ``now`` when none is."""
    begun = [window.start for window in open_windows if window.start <= now < window.end]
    begun += [spell[0] for window in policy.windows if (spell := active(window, now)) is not None]
    return min(begun, default=now)


def closed_since(policy: Policy, open_windows: Iterable[OpenWindow], now: float) -> float | None:
    """When the last window closed before ``now``, at which none is open; None: none did in ``BACK_DAYS``."""
    ends = [window.end for window in open_windows if window.start < window.end <= now]
    ends += [end for window in policy.windows if (end := _last_end(window, now)) is not None]
    return max(ends, default=None)


def _last_end(window: CalendarWindow, now: float) -> float | None:
    """When its last spell ended. Spells of days ago are looked for in steps: each is known from then on."""
    day = int(now // DAY)
    for earlier in range(BACK_DAYS):
        ends = [end for _, end in _spells(window, day - earlier) if end <= now]
        if ends:
            return max(ends)
    return None


def _open_at(policy: Policy, once: list[tuple[float, float, str]], when: float) -> list[tuple[float, str]]:
    """End and name of each window that is open at ``when``."""
    spells = [(window.name, active(window, when)) for window in policy.windows]
    found = [(spell[1], name) for name, spell in spells if spell is not None]
    return found + [(end, name) for start, end, name in once if start <= when < end]
