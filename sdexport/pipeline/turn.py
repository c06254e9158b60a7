"""Whose turn it is: one request at a time, from whatever thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sdexport.errors import UsageError


class Turn:
    """Lets one request at a time through, and knows which thread it belongs to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for the turn of this thread and holds it.

        Raises:
            UsageError: this thread has it already, so that it would wait for itself.
        """
        if self._owner == threading.get_ident():
            raise UsageError(
                "this pipeline is still drawing for an unfinished stream of this thread; finish "
                "that stream or call its close() first"
            )
        # A plain lock, because a generator may be closed by another thread than began it.
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def resumed(self) -> None:
        """The turn's request goes on, possibly in another thread."""
        self._owner = threading.get_ident()
