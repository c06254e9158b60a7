"""Ranges, profiles and precisions, and their errors for invalid values."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport.errors import UsageError
from sdexport.model.shapes import Precision, Profile, Range


@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=3).map(sorted))
def test_range_round_trip(numbers: list[int]) -> None:
    limits = Range(*numbers)
    assert Range.parse(f"{limits.min}:{limits.opt}:{limits.max}") == limits
    assert Range.parse(str(limits)) == limits
    assert limits.min in limits
    assert limits.max + 1 not in limits


@pytest.mark.parametrize(("text", "limits"), [("3", Range(3, 3, 3)), ("1:4", Range(1, 1, 4))])
def test_short_ranges(text: str, limits: Range) -> None:
    assert Range.parse(text) == limits


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "1.5", "4:1", "0", "-1:2", "2:1:3"])
def test_invalid_ranges_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"a range must"):
        Range.parse(text)


def test_profile_round_trip_and_check() -> None:
    profile = Profile(Range(1, 1, 2), Range(64, 128, 256), Range(64, 64, 64))
    assert Profile.from_json(profile.as_json()) == profile
    profile.check(batch=2, height=256, width=64)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"batch": 3, "height": 64, "width": 64}, r"batch 3 .*allows 1 to 2"),
        ({"batch": 1, "height": 264, "width": 64}, r"height 264 .*allows 64 to 256"),
        ({"batch": 1, "height": 64, "width": 128}, r"width 128 .*allows 64 to 64"),
        (
            {"batch": 1, "height": 100, "width": 64},
            r"height must be a multiple of 8.* got 100.*96 and 104",
        ),
    ],
)
def test_a_shape_outside_the_profile_is_named(shape: dict[str, int], message: str) -> None:
    profile = Profile(Range(1, 1, 2), Range(64, 128, 256), Range(64, 64, 64))
    with pytest.raises(UsageError, match=message):
        profile.check(**shape)


def test_profile_sides_are_multiples_of_eight() -> None:
    with pytest.raises(UsageError, match="height in the profile must be a multiple of 8 .* 100"):
        Profile(height=Range(100, 100, 100))


def test_precision() -> None:
    assert Precision.parse("FP16") is Precision.FP16
    with pytest.raises(UsageError, match="fp32, fp16, bf16"):
        Precision.parse("int3")


SQUARE = Profile(Range(1, 1, 4), Range(512, 512, 512), Range(512, 512, 512))
WIDE = Profile(Range(1, 1, 1), Range(256, 512, 1024), Range(256, 512, 1024))
BOTH = dataclasses.replace(SQUARE, others=(WIDE,))


def test_several_profiles_serve_the_shapes_of_each() -> None:
    assert Profile.from_json(BOTH.as_json()) == BOTH
    assert BOTH.all == (SQUARE, WIDE)
    assert BOTH.serving(height=512, width=512) == SQUARE
    assert BOTH.serving(height=768, width=256) == WIDE
    BOTH.check(batch=4, height=512, width=512)
    with pytest.raises(UsageError, match="batch 4 is outside"):
        BOTH.check(batch=4, height=768, width=512)
    with pytest.raises(UsageError, match=r"profiles, 512x512, 256:512:1024x256.* got 1032x512"):
        BOTH.serving(height=512, width=1032)
    with pytest.raises(UsageError, match="multiple of 8"):
        BOTH.serving(height=500, width=512)


def test_one_profile_names_the_dimension() -> None:
    with pytest.raises(UsageError, match="height 256 is outside this bundle's profile"):
        SQUARE.serving(height=256, width=512)


def test_profiles_do_not_nest() -> None:
    with pytest.raises(UsageError, match="must not have `others` itself"):
        Profile(others=(BOTH,))
