"""Writes docs/api.md from the public names; with --check, exits with 1 where it differs.

python scripts/api_docs.py [--check]
"""

from __future__ import annotations

import enum
import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sdexport  # noqa: E402  # from this checkout
import sdexport.testing  # noqa: E402

FILE = ROOT / "docs" / "api.md"


def page() -> str:
    """The page: each public name with its signature, members and documentation."""
    lines = [
        "# The Python interface",
        "",
        "Made from the code by `make docs`. What is not on this page may change without notice.",
    ]
    subjects = [(f"sdexport.{name}", getattr(sdexport, name)) for name in sorted(sdexport.__all__)]
    subjects += [
        (f"sdexport.testing.{name}", getattr(sdexport.testing, name))
        for name in sdexport.testing.__all__
    ]
    for name, value in subjects:
        if name != "sdexport.__version__":
            lines += ["", f"## `{name}`", *described(name, value)]
    return "\n".join(lines) + "\n"


def described(name: str, value: Any) -> list[str]:
    """Signature, documentation and members of one name."""
    if not inspect.isclass(value):
        return code(signature(name, value), documentation(value))
    if issubclass(value, enum.Enum):
        said = ", ".join(f"`{one.name}` = {one.value!r}" for one in value)
        return [*code(None, documentation(value)), "", f"Members: {said}."]
    own = None if issubclass(value, BaseException) else signature(name, value)
    found = code(own, documentation(value))
    for method, function in vars(value).items():
        if method.startswith("_"):
            continue
        where = f"{name.rsplit('.', 1)[-1]}.{method}"
        member = getattr(value, method)  # A class method is bound, and has its signature.
        if isinstance(function, property):
            found += ["", f"### `{where}`", *code(None, documentation(function))]
        elif inspect.isroutine(member):
            found += ["", f"### `{where}`", *code(signature(where, member), documentation(member))]
    return found


def signature(name: str, value: Any) -> str | None:
    """`name(…)`, a parameter a line where they are many."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    parameters = [one for one in found.parameters.values() if not one.name.startswith("_")]
    text = plain(f"{name}{found.replace(parameters=parameters)}")
    if len(text) <= 100:
        return text
    said, star = [], False
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not star:
            said.append("*")
            star = True
        said.append(str(one))
    end = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    return plain(f"{name}(\n" + "".join(f"    {one},\n" for one in said) + f"){end}")


def plain(text: str) -> str:
    """Annotations that are kept as text, without their quotes."""
    return re.sub(r"((?:: |-> ))'([^']*)'", r"\1\2", text)


def documentation(value: Any) -> str:
    return inspect.cleandoc(inspect.getdoc(value) or "")


def code(*texts: str | None) -> list[str]:
    """Each text as a block, as it is: documentation in the code is plain text."""
    return [line for text in texts if text for line in ("", "```", text, "```")]


def main() -> int:
    wanted = page()
    if "--check" not in sys.argv[1:]:
        FILE.write_text(wanted, encoding="utf-8")
        return 0
    if FILE.is_file() and FILE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{FILE.relative_to(ROOT)} differs from the code: run make docs, and read what changed")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
