"""Whose pool it is, with one place and with several."""

from __future__ import annotations

import threading
from itertools import count

import pytest

from sdexport.errors import UsageError
from sdexport.pipeline.workspace_pool import WorkspacePool


def test_workspaces_are_made_when_they_are_wanted_and_used_again() -> None:
    numbers = count()
    pool = WorkspacePool(lambda: next(numbers), most=3)
    with pool.taken() as first:
        assert first.workspaces == 0
    with pool.taken() as again, pool.taken() as second:
        assert (again.workspaces, second.workspaces) == (0, 1)
    assert next(numbers) == 2, "a place too many was made"


def test_the_place_used_last_comes_first() -> None:
    numbers = count()
    pool = WorkspacePool(lambda: next(numbers), most=2)
    with pool.taken() as first, pool.taken() as second:
        made = first.workspaces, second.workspaces
    with pool.taken() as held:
        assert held.workspaces == made[0], "the outer one was given back last"


def test_a_thread_that_holds_every_place_is_told() -> None:
    pool = WorkspacePool(object, most=2)
    with pool.taken(), pool.taken(), pytest.raises(UsageError, match="unfinished stream"):
        pool._take()
    with pool.taken():
        pass


def test_a_thread_with_one_of_two_waits_for_the_other() -> None:
    pool = WorkspacePool(object, most=2)
    entered, leave, done = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with pool.taken():
            entered.set()
            leave.wait(60)

    def mine() -> None:
        with pool.taken():
            entered.wait(60)
            with pool.taken():
                done.set()

    threads = [threading.Thread(target=body) for body in (other, mine)]
    for thread in threads:
        thread.start()
    entered.wait(60)
    assert not done.wait(0.05), "three held two made"
    leave.set()
    assert done.wait(60)
    for thread in threads:
        thread.join(60)


def test_closing_gives_all_once() -> None:
    numbers = count()
    pool = WorkspacePool(lambda: next(numbers), most=2)
    with pool.taken(), pool.taken(), pytest.raises(UsageError, match="still generating"):
        pool.close()
    assert sorted(pool.close()) == [0, 1]
    assert pool.close() == []
    with pytest.raises(UsageError, match="closed"), pool.taken():
        pass


def test_a_place_that_cannot_be_made_harms_nobody() -> None:
    attempts = iter([MemoryError, None])

    def make() -> str:
        failure = next(attempts)
        if failure is not None:
            raise failure
        return "place"

    pool = WorkspacePool(make)
    with pytest.raises(MemoryError), pool.taken():
        pass
    with pool.taken() as held:
        assert held.workspaces == "place"
