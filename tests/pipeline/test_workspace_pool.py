"""Whose turn it is, with one place and with several."""

from __future__ import annotations

import threading
from itertools import count

import pytest

from sdexport.errors import UsageError
from sdexport.pipeline.workspace_pool import WorkspacePool


def test_places_are_made_when_they_are_wanted_and_used_again() -> None:
    numbers = count()
    turn = WorkspacePool(lambda: next(numbers), places=3)
    with turn.taken() as first:
        assert first.place == 0
    with turn.taken() as again, turn.taken() as second:
        assert (again.place, second.place) == (0, 1)
    assert next(numbers) == 2, "a place too many was made"


def test_the_place_used_last_comes_first() -> None:
    numbers = count()
    turn = WorkspacePool(lambda: next(numbers), places=2)
    with turn.taken() as first, turn.taken() as second:
        places = first.place, second.place
    with turn.taken() as held:
        assert held.place == places[0], "the outer one was given back last"


def test_a_thread_that_holds_every_place_is_told() -> None:
    turn = WorkspacePool(object, places=2)
    with turn.taken(), turn.taken(), pytest.raises(UsageError, match="unfinished stream"):
        turn._take()
    with turn.taken():
        pass


def test_a_thread_with_one_of_two_places_waits_for_the_other() -> None:
    turn = WorkspacePool(object, places=2)
    entered, leave, done = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with turn.taken():
            entered.set()
            leave.wait(60)

    def mine() -> None:
        with turn.taken():
            entered.wait(60)
            with turn.taken():
                done.set()

    threads = [threading.Thread(target=body) for body in (other, mine)]
    for thread in threads:
        thread.start()
    entered.wait(60)
    assert not done.wait(0.05), "three held two places"
    leave.set()
    assert done.wait(60)
    for thread in threads:
        thread.join(60)


def test_closing_gives_every_place_once() -> None:
    numbers = count()
    turn = WorkspacePool(lambda: next(numbers), places=2)
    with turn.taken(), turn.taken(), pytest.raises(UsageError, match="still generating"):
        turn.close()
    assert sorted(turn.close()) == [0, 1]
    assert turn.close() == []
    with pytest.raises(UsageError, match="closed"), turn.taken():
        pass


def test_a_place_that_cannot_be_made_harms_nobody() -> None:
    attempts = iter([MemoryError, None])

    def make() -> str:
        failure = next(attempts)
        if failure is not None:
            raise failure
        return "place"

    turn = WorkspacePool(make)
    with pytest.raises(MemoryError), turn.taken():
        pass
    with turn.taken() as held:
        assert held.place == "place"
