"""What a running search tells its user."""

import io
import math

from jaxnas import progress
from jaxnas.progress import Meter, Progress
from tests.unit.test_store import a_row

START = Progress("a-0", 4, 8, 0.5, 0.25, 0, 2.0, 90.0)
END = START._replace(evaluations=8, fraction=1.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_seldom_but_the_last_one_always():
    stream = io.StringIO()
    show = progress.printer(stream, interval=1000.0)
    for status in (START, START, END):
        show(status)
    assert stream.getvalue().splitlines() == [progress.line(START), progress.line(END)]


def test_an_interval_of_zero_shows_every_step():
    stream = io.StringIO()
    show = progress.printer(stream, interval=0.0)
    for _ in range(5):
        show(START)
    assert stream.getvalue().splitlines() == [progress.line(START)] * 5


def test_a_terminal_line_is_rewritten_in_place():
    stream = Terminal()
    show = progress.printer(stream, interval=1000.0)
    show(START)
    show(END)
    first, second = progress.line(START), progress.line(END)
    assert stream.getvalue() == f"\r\x1b[K{first}\r\x1b[K{second}\n"


def test_what_is_not_known_yet_is_not_made_up():
    text = progress.line(START._replace(total=None, best=-math.inf, rate=math.nan))
    assert text.startswith("a-0 [##########----------] 4  best -inf")
    assert "? left" in progress.line(START._replace(seconds_left=math.nan))


def test_a_meter_follows_successes_and_failures():
    meter = Meter([a_row(fitness=math.nan)])
    assert (meter.evaluations, meter.num_failed, meter.best) == (1, 1, -math.inf)
    assert math.isnan(meter.rate)
    meter.update([a_row(fitness=0.5), a_row(fitness=math.nan), a_row(fitness=0.25)])
    assert (meter.evaluations, meter.num_failed, meter.best) == (4, 2, 0.5)
    assert meter.rate > 0.0


def test_the_first_step_counts_only_until_there_is_another(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter = Meter([])
    rates = []
    for seconds in (8.0, 1.0, 3.0):
        now[0] += seconds
        meter.update([a_row(), a_row()])
        rates.append(meter.rate)
    assert rates == [0.25, 2.0, 1.0]


def test_the_rate_is_that_of_the_last_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter = Meter([a_row()] * 100)  # journaled before: they took no time now
    for seconds in [10.0] * 5 + [0.5] * progress.RECENT:
        now[0] += seconds
        meter.update([a_row(), a_row()])
    assert meter.rate == 4.0
