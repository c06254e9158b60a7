"""Every status of the CUDA driver is classified: the device is lost, or the next call may work."""

from __future__ import annotations

import re

import pytest

from sdexport.backends.cuda import driver as cuda

driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

ENDS = re.compile(r"process must be terminated|context cannot be used anymore")
"""Matches the documentation of a status after which no call works."""

PASSES = {
    0, 1, 2, 3, 5, 6, 7, 8, 34, 36, 46, 47, 100, 101, 102,
    200, 201, 202, 205, 206, 207, 208, 209, 210, 211, 212, 213, 215, 216, 217, 218, 219, 221, 222,
    223, 224, 225, 227, 300, 301, 302, 303, 304, 400, 401, 402, 500, 600,
    701, 703, 704, 705, 708, 711, 712, 713, 720,
    800, 801, 802, 803, 804, 805, 806, 807, 808, 809, 811, 812,
    900, 901, 902, 903, 904, 905, 906, 907, 908, 909, 910, 912, 913, 914, 915, 916, 917, 919, 999,
}  # fmt: skip
"""Statuses that concern one call; the next call may work."""


def documented() -> dict[int, str]:
    return {int(one): " ".join((one.__doc__ or "").split()) for one in driver.CUresult}


def test_the_documentation_is_there() -> None:
    assert ENDS.search(documented()[700])


def test_statuses_documented_to_end_the_process_are_lost() -> None:
    ending = {number for number, text in documented().items() if ENDS.search(text)}
    assert ending, "the documentation is worded in another way"
    assert ending <= cuda.LOST


def test_every_status_is_classified() -> None:
    assert not cuda.LOST & PASSES
    unknown = set(documented()) - cuda.LOST - PASSES
    assert not unknown, f"new statuses, to be read about: {sorted(unknown)}"


def test_remedies_exist_only_for_statuses_of_one_call() -> None:
    assert not set(cuda.REMEDIES) & cuda.LOST
    assert set(cuda.REMEDIES) <= PASSES
