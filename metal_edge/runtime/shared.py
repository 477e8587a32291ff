"""One engine for all who use the same bundle: loaded once, taken in turns, freed by the last."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from metal_edge.bundle import Bundle
from metal_edge.domain import Inspection
from metal_edge.errors import UnavailableError
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner


class FairLock:
    """A lock that is handed over in the order of asking.

    Who asks while n - 1 others use or await it gets it after at most n - 1 turns. Python's own
    lock gives no such promise: the thread that let go may take it again and again.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._queue: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        with self._guard:
            return len(self._queue)

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            mine = threading.Event()
            self._queue.append(mine)
        mine.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._guard:
            if self._queue:
                self._queue.popleft().set()  # it stays held: by the one that waited longest
            else:
                self._held = False


class SharedRunner:
    """One user's share of an engine; a Runner like any other."""

    def __init__(self, runner: Runner, turn: FairLock, release: Callable[[], None]) -> None:
        self._runner = runner
        self._turn = turn
        self._release: Callable[[], None] | None = release

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """See `Runner.input_shape`."""
        return self._runner.input_shape

    def run(self, images: NDArray[np.uint8]) -> list[Inspection]:
        """See `Runner.run`; waits while others are at it, each for one call at most."""
        with self._turn:
            if self._release is None:
                raise UnavailableError("this share of the engine is closed", "open another one")
            return self._runner.run(images)

    def close(self) -> None:
        """Gives the share back; the engine goes with the last one. May be called twice.

        And from any thread: an engine is not freed while somebody is at it.
        """
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Engine:
    """Guarded by Engines: `users` by its lock, `runner` by `loading`."""

    def __init__(self) -> None:
        self.users = 0
        self.loading = threading.Lock()
        self.turn = FairLock()
        self.runner: Runner | None = None
        self.end = ExitStack()


class Engines:
    """The engines of this process, one per bundle digest.

    Args:
        load: makes a runner; another one for tests.
    """

    def __init__(self, load: Callable[[Bundle, int], Runner] = load_runner) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._engines: dict[str, _Engine] = {}

    def open(self, bundle: Bundle, threads: int) -> SharedRunner:
        """A share of the bundle's engine. Others are served while this one is loaded.

        Args:
            threads: of an engine that is not loaded yet; otherwise it stays as it is.

        Raises:
            UnavailableError: as `load_runner` says.
        """
        with self._lock:
            engine = self._engines.setdefault(bundle.digest, _Engine())
            engine.users += 1
        try:
            with engine.loading:
                if engine.runner is None:
                    engine.runner = engine.end.enter_context(self._load(bundle, threads))
        except BaseException:
            self._release(bundle.digest)
            raise
        return SharedRunner(engine.runner, engine.turn, lambda: self._release(bundle.digest))

    def _release(self, digest: str) -> None:
        with self._lock:
            engine = self._engines[digest]
            engine.users -= 1
            if engine.users:
                return
            del self._engines[digest]
        with engine.turn:
            engine.end.close()
