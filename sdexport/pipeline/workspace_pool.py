"""Whose turn it is: a bounded number of requests at a time, from whatever threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from sdexport.backends.slots import CLOSED_MESSAGE
from sdexport.errors import UsageError

Place = TypeVar("Place")


class Held(Generic[Place]):
    """A place that a request holds, and the thread that the request belongs to just now."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.owner = threading.get_ident()

    def resumed(self) -> None:
        """The request goes on, possibly in another thread."""
        self.owner = threading.get_ident()


class WorkspacePool(Generic[Place]):
    """Lets a request through for each place, and knows which thread it belongs to.

    Args:
        make: makes a place; called when a request finds none free, at most `places` times.
        places: how many requests may be on their way at once.
    """

    def __init__(self, make: Callable[[], Place], places: int = 1) -> None:
        self._make = make
        self._places = places
        self._made: list[Place] = []
        self._free: list[Place] = []
        self._held: list[Held[Place]] = []
        self._closed = False
        # A plain condition, because a generator may be closed by another thread than began it.
        self._changed = threading.Condition(threading.Lock())

    @contextmanager
    def taken(self) -> Iterator[Held[Place]]:
        """Waits for the turn of this thread and holds a place.

        Raises:
            UsageError: every place is this thread's already, so that it would wait for itself; or
                the turn is closed.
        """
        held = self._take()
        try:
            yield held
        finally:
            with self._changed:
                self._held.remove(held)
                self._free.append(held.place)
                self._changed.notify()

    def _take(self) -> Held[Place]:
        with self._changed:
            self._check_open()
            while not self._free and len(self._held) >= self._places:
                if all(held.owner == threading.get_ident() for held in self._held):
                    raise UsageError(
                        "this pipeline is still generating for an unfinished stream of this "
                        "thread; finish that stream or call its close() first"
                    )
                self._changed.wait()
                self._check_open()
            if not self._free:
                place = self._make()
                self._made.append(place)
                self._free.append(place)
            # The one used last: what it has bound is what is wanted next, most likely.
            held = Held(self._free.pop())
            self._held.append(held)
            return held

    @property
    def closed(self) -> bool:
        """Whether no place is given any more."""
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(CLOSED_MESSAGE)

    def close(self) -> list[Place]:
        """Every place, taken away for good; none the second time.

        Raises:
            UsageError: a place is held.
        """
        with self._changed:
            if self._held:
                raise UsageError(
                    "this pipeline is still generating; finish its streams or close them first"
                )
            places, self._made = self._made, []
            self._free.clear()
            self._closed = True
            self._changed.notify_all()
            return places
