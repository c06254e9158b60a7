"""What `make check-install` installs, and what docs/versions.md says of it, is what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from scripts import check_install
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PAGE = check_install.PAGE.read_text(encoding="utf-8")
ROWS = [tuple(cell.strip() for cell in row) for row in re.findall(
    r"^\| `([\w-]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|", PAGE, re.MULTILINE
)]  # fmt: skip
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def bounds(*extras: str) -> dict[str, str]:
    """The lowest version by distribution, as pyproject.toml has it."""
    wanted = PROJECT["dependencies"] + [one for extra in extras for one in EXTRAS[extra]]
    return dict(one.split(">=") for one in wanted)


def numbers(version: str) -> list[int]:
    """1.26, 1.26.0 and 1.26.0+cpu are one version."""
    found = [int(part) for part in version.partition("+")[0].split(".")]
    while found and found[-1] == 0:
        found.pop()
    return found


def test_every_extra_is_installed_or_explained() -> None:
    assert set(check_install.CASES) | set(check_install.LEFT_OUT) == {"base", *EXTRAS}
    assert {extra for extra, *_ in ROWS} == {"base", *EXTRAS}


@pytest.mark.parametrize("extra", check_install.CASES)
def test_the_lowest_versions_that_were_run_are_those_that_are_allowed(extra: str) -> None:
    """A lower bound that changes is run again, or the row says that it was not."""
    allowed = bounds(*check_install.CASES[extra].extras)
    for _, which, versions, _ in [row for row in ROWS if row[0] == extra]:
        if which == check_install.LOWEST and versions:
            ran = dict(one.split(" ") for one in versions.split(", "))
            assert {name: numbers(one) for name, one in ran.items()} == {
                name: numbers(one) for name, one in allowed.items()
            }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_extras_that_there_are(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"pip install [^`\n]*?\[([\w,-]+)\]", text)
    assert {name for group in named for name in group.split(",")} <= set(EXTRAS)
