"""What a running search tells its user: one line per moment."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

from jaxnas.store import Row

BAR_SIZE = 20  # characters
RECENT = 20  # steps over which candidates per second are counted


class Progress(NamedTuple):
    """The state of one arm after a step."""

    arm: str
    evaluations: int
    total: int | None  # None: the budget is in seconds
    fraction: float  # of the arm's budget, in [0, 1]
    best: float  # fitness; minus infinity before the first success
    num_failed: int
    rate: float  # candidates per second over the last steps; NaN at first
    seconds_left: float  # of the whole run; NaN where unknown


ProgressFn = Callable[[Progress], None]


def line(progress: Progress) -> str:
    """One line of text.

    Example:
      >>> line(Progress("evolution-0", 64, 128, 0.5, 0.9731, 2, 12.34, 75.0))
      'evolution-0 [##########----------] 64/128  best 0.9731  12.3/s  1:15 left  2 failed'
    """
    filled = int(BAR_SIZE * progress.fraction)
    count = f"{progress.evaluations}" + ("" if progress.total is None else f"/{progress.total}")
    parts = [
        f"{progress.arm} [{'#' * filled}{'-' * (BAR_SIZE - filled)}] {count}",
        f"best {progress.best:.4f}",
        f"{progress.rate:.1f}/s",
        f"{duration(progress.seconds_left)} left",
    ]
    if progress.num_failed:
        parts.append(f"{progress.num_failed} failed")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Example:
      >>> duration(75.2), duration(7265), duration(float("nan"))
      ('1:15', '2:01:05', '?')
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def printer(stream: TextIO | None = None, *, interval: float = 10.0) -> ProgressFn:
    """Writes progress for people.

    On a terminal one line is rewritten in place, at most ten times a second; elsewhere (a file, a
    pipe) plain lines are written.

    Args:
      stream: where to; None: standard error.
      interval: seconds between plain lines. The last line of an arm is always written.

    Returns:
      `(Progress) -> None`.
    """
    out = sys.stderr if stream is None else stream
    in_place = out.isatty()
    wait = 0.1 if in_place else interval
    last = -math.inf

    def show(progress: Progress) -> None:
        nonlocal last
        finished = progress.fraction >= 1.0
        if not finished and time.monotonic() - last < wait:
            return
        last = time.monotonic()
        erase = "\r\x1b[K" if in_place else ""
        out.write(erase + line(progress) + ("\n" if finished or not in_place else ""))
        out.flush()

    return show


class Meter:
    """Follows one arm: best so far, failures, and the speed of the last steps."""

    def __init__(self, rows: Sequence[Row]):
        """Starts from the rows that are journaled already."""
        self.evaluations = 0
        self.num_failed = 0
        self.best = -math.inf
        self._started = (time.monotonic(), 0)
        self._recent = deque([self._started], maxlen=RECENT + 1)
        self._count(rows)

    def update(self, rows: Sequence[Row]) -> None:
        """Takes in the rows of one new step."""
        self._count(rows)
        self._recent.append((time.monotonic(), self._recent[-1][1] + len(rows)))
        if len(self._recent) == 3 and self._recent[0] is self._started:
            self._recent.popleft()  # the first step compiles, which tells nothing about the others

    @property
    def rate(self) -> float:
        """Candidates per second over the last steps; NaN before there are any."""
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        return (last - first) / (end - start) if end > start else math.nan

    def _count(self, rows: Sequence[Row]) -> None:
        fitness = [row.fitness for row in rows if not math.isnan(row.fitness)]
        self.evaluations += len(rows)
        self.num_failed += len(rows) - len(fitness)
        self.best = max([self.best, *fitness])
