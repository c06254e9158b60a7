"""Workspaces for a bounded number of requests at a time, from whatever threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from sdexport.backends.slots import CLOSED_MESSAGE
from sdexport.errors import UsageError

W = TypeVar("W")


class Held(Generic[W]):
    """Workspaces that a request holds, and the thread that the request belongs to just now."""

    def __init__(self, workspaces: W) -> None:
        self.workspaces = workspaces
        self.owner = threading.get_ident()

    def resumed(self) -> None:
        """The request goes on, possibly in another thread."""
        self.owner = threading.get_ident()


class WorkspacePool(Generic[W]):
    """Lends workspaces to requests, and knows which thread each request belongs to.

    Args:
        make: makes workspaces; called when a request finds none free, at most `most` times.
        most: how many requests may run at once.
    """

    def __init__(self, make: Callable[[], W], most: int = 1) -> None:
        self._make = make
        self._most = most
        self._made: list[W] = []
        self._free: list[W] = []
        self._held: list[Held[W]] = []
        self._closed = False
        # A plain condition, because a generator may be closed by another thread than began it.
        self._changed = threading.Condition(threading.Lock())

    @contextmanager
    def taken(self) -> Iterator[Held[W]]:
        """Waits until workspaces are free, and holds them for the body.

        Raises:
            UsageError: all are held by this thread, so that it would wait for itself; or the
                pool is closed.
        """
        held = self._take()
        try:
            yield held
        finally:
            with self._changed:
                self._held.remove(held)
                self._free.append(held.workspaces)
                self._changed.notify()

    def _take(self) -> Held[W]:
        with self._changed:
            self._check_open()
            while not self._free and len(self._held) >= self._most:
                if all(held.owner == threading.get_ident() for held in self._held):
                    raise UsageError(
                        "this pipeline is still generating for an unfinished stream of this "
                        "thread; finish that stream or call its close() first"
                    )
                self._changed.wait()
                self._check_open()
            if not self._free:
                workspaces = self._make()
                self._made.append(workspaces)
                self._free.append(workspaces)
            # The one used last: what it has bound is what is wanted next, most likely.
            held = Held(self._free.pop())
            self._held.append(held)
            return held

    @property
    def closed(self) -> bool:
        """Whether nothing is lent any more."""
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(CLOSED_MESSAGE)

    def close(self) -> list[W]:
        """All workspaces, taken away for good; none the second time.

        Raises:
            UsageError: some are held.
        """
        with self._changed:
            if self._held:
                raise UsageError(
                    "this pipeline is still generating; finish its streams or close them first"
                )
            made, self._made = self._made, []
            self._free.clear()
            self._closed = True
            self._changed.notify_all()
            return made
