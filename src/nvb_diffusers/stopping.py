"""How commands and runs stop: SIGINT and SIGTERM, which terminals, Slurm and the clouds send, end in one line.

A signal becomes `Stopped`, which unwinds what is open as any error does, so that nothing is left half-written. A loop
that can end better by itself, with a checkpoint, waits for it under `asked_to_stop`. Worker processes do neither: they
go with their parent.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to stop.

    Args:
        number: of the signal.
        note: what there is to know of how to go on.
    """

    def __init__(self, number: int, note: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{note}")
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that shells give a process that a signal ended."""
        return 128 + self.number


class StopRequest:
    """Whether a signal came, for a loop that looks after each of its steps.

    Attributes:
        number: of the signal; None for none.
    """

    number: int | None = None


@contextmanager
def stop_by_signals() -> Iterator[None]:
    """Raise `Stopped` in the block when a signal comes."""
    with _handled(_raise):
        yield


@contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """Note the first signal in what is yielded; a second one raises `Stopped` at once."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.number is not None:
            _raise(number, frame)
        request.number = number

    with _handled(note):
        yield request


def begin_worker(_: int = 0) -> None:
    """Let a worker process ignore what its parent is told, and end when that does, however that ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _raise(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def _handled(handler: "signal._HANDLER") -> Iterator[None]:
    """Handle signals so in the block; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
