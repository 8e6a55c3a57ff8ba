"""How commands and runs stop: SIGINT, SIGTERM and SIGHUP, which terminals, Slurm and the clouds send, end in one line.

A signal becomes `Stopped`, which unwinds what is open as any error does, so that nothing is left half-written. A loop
that can end better by itself, with a checkpoint, waits for it under `asked_to_stop`. Worker processes do neither: they
go with their parent. A terminal that is closed sends SIGHUP, which `nohup` has ignored; that stays so.
"""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from types import FrameType

HANG_UP = getattr(signal, "SIGHUP", None)  # which Windows has not
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANG_UP] if HANG_UP is not None else []))


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
    """Note the first signal in what is yielded; a second one raises `Stopped` at once, but for a hang-up.

    Those come more than once, from the terminal and from its shell, and after SIGTERM.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if number == HANG_UP:
            _leave_terminal()
        elif request.number is not None:
            _raise(number, frame)
        request.number = request.number or number

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
    if number == HANG_UP:
        _leave_terminal()
    raise Stopped(number)


def _leave_terminal() -> None:
    """Write to nothing where the terminal that was written to is gone: a line of progress would end what goes on."""
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, stream)
                os.close(nothing)


@contextmanager
def _handled(handler: "signal._HANDLER") -> Iterator[None]:
    """Handle signals so in the block; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [number for number in SIGNALS if number != HANG_UP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
