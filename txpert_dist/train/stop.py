"""How a run is told to stop, and how its loop hears of it.

Enters: SIGTERM or SIGINT to the driver, SIGTERM to a worker, the driver's word in the run's folder. Leaves:
an event that the loop looks at in every step. Invariant: a signal is only remembered; the next one does what
it would have done without us, so whoever insists is obeyed.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from txpert_dist.train.claim import Claim, tell_to_stop, told_to_stop

_LOOK_EVERY_S = 0.5
_GO_ON = "the same command goes on from there"
_GO_ON_BEFORE = "the same command goes on from the one before"
log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run that was told to stop, and did; the same command goes on. The message says from where."""


class Ear:
    """Handler of signals: remembers the first, hands every other one to the handler that was there before.

    What the process ignores (a shell's background does with SIGINT) stays ignored.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.told = threading.Event()
        """Set by the first signal."""
        before = {number: signal.getsignal(number) for number in numbers}
        self._before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def listen(self) -> None:
        """Take the signals, again if somebody took them since. The main thread must call this."""
        for number in self._before:
            signal.signal(number, self)

    def leave(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember, or hand on."""
        if not self.told.is_set():
            self.told.set()
            return
        before = self._before[signal.Signals(number)]
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextmanager
def listening() -> Iterator[Ear]:
    """On the driver, in its main thread: the first SIGTERM or Ctrl-C is heard, the second interrupts.

    ``SystemExit``, with which other handlers end a process, becomes ``Stopped``. In other threads nothing is
    heard.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield Ear()
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ear = Ear(signal.SIGTERM, signal.SIGINT)
    ear.listen()
    try:
        yield ear
    except SystemExit:
        raise Stopped(f"stopped before training began; {_GO_ON}") from None
    finally:
        ear.leave()
        signal.signal(signal.SIGTERM, before)


def attended(
    work: Callable[[], dict[str, Any]],
    ear: Ear,
    claim: Claim,
    *,
    deadline_s: float,
    news: Callable[[str], None],
) -> dict[str, Any]:
    """The result of ``work``, done in another thread: this one has ears for whoever tells the run to stop.

    Then the workers are given word, and ``deadline_s`` seconds. Raises what ``work`` raises, ``Stopped`` when
    it was told to and has ended by then or not.
    """
    under_way = _begun(work)
    until = None
    while not under_way.done():
        wait([under_way], timeout=_LOOK_EVERY_S)
        if ear.told.is_set() and until is None:
            with suppress(OSError):  # then the workers do not hear of it, and the deadline passes
                tell_to_stop(claim)
            news("told to stop: a checkpoint comes first (tell again to stop at once)")
            until = time.monotonic() + deadline_s
        if until is not None and time.monotonic() > until and not under_way.done():
            raise Stopped(
                f"stopped without a last checkpoint, for train.stop_deadline_s={deadline_s:g} have passed; "
                f"{_GO_ON_BEFORE}"
            )
    error = under_way.exception()
    if error is not None and ear.told.is_set():
        raise Stopped(f"stopped, but the workers ended without a last checkpoint; {_GO_ON_BEFORE}") from error
    result = under_way.result()
    if result.get("stopped_at") is not None:
        raise Stopped(f"stopped at step {result['stopped_at']:,}, with a checkpoint; {_GO_ON}")
    return result


def _begun(work: Callable[[], dict[str, Any]]) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            future.set_exception(error)

    # a daemon: nobody waits for it once the time is up
    threading.Thread(target=run, name="txpert-driver", daemon=True).start()
    return future


def listen_for_sigterm() -> None:
    """Let this process, a worker's, outlive its first SIGTERM; the main thread must call this."""
    if not isinstance(signal.getsignal(signal.SIGTERM), Ear):
        Ear(signal.SIGTERM).listen()


def told_by_sigterm() -> threading.Event:
    """Set once this process has got SIGTERM, if it listens; any thread may ask."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler.told if isinstance(handler, Ear) else threading.Event()


@contextmanager
def word_awaited(claim: Claim, told: threading.Event) -> Iterator[None]:
    """While the context lasts, ``told`` is set when the driver leaves word, or another takes the run over."""
    ended = threading.Event()
    thread = threading.Thread(
        target=_look, args=(lambda: told_to_stop(claim), told, ended), name="txpert-stop", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _look(asked: Callable[[], bool], told: threading.Event, ended: threading.Event) -> None:
    while not ended.wait(_LOOK_EVERY_S):
        try:
            if asked():
                told.set()
                return
        except (OSError, ValueError) as error:  # a shared file system has its moments
            log.warning("cannot see whether to stop: %s", error)
