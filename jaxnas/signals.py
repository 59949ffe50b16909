"""SIGINT and SIGTERM as requests to stop in good order."""

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; what was journaled is safe.

    Attributes:
      signum: the signal.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 or 143."""
        return 128 + self.signum


@dataclass
class Stop:
    """Whether somebody asked to stop.

    Attributes:
      signum: the signal received; None while there was none.
    """

    signum: int | None = None


@contextmanager
def deferred(message: str) -> Generator[Stop]:
    """Within it the first signal only sets `signum` of the result; a second one raises.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.

    Args:
      message: of the exception.

    Raises:
      Interrupted: at a second signal.
    """
    stop = Stop()

    def handle(signum, frame):
        del frame
        if stop.signum is not None:
            raise Interrupted(signum, message)
        stop.signum = signum
        # Not print: the handler may have interrupted one.
        os.write(2, b"\nstopping after this step; a second signal stops at once\n")

    with _handling(handle):
        yield stop


@contextmanager
def immediate(message: str = "stopped") -> Generator[None]:
    """Within it every signal raises `Interrupted` with this message."""

    def handle(signum, frame):
        del frame
        raise Interrupted(signum, message)

    with _handling(handle):
        yield


@contextmanager
def _handling(handle: Callable) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.signal(signum, handle) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
