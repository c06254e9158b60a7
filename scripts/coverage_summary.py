"""Says what `python -m slipcover` wrote to .coverage.json: the share of lines, and the floor."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 8


def main() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["slipcover"]
    found = json.loads((ROOT / config["out"]).read_text("utf-8"))
    share, floor = found["summary"]["percent_covered"], config["fail-under"]
    least = sorted(
        (file["summary"]["percent_covered"], name) for name, file in found["files"].items()
    )
    print(f"Coverage: {share:.1f} % of the package's lines; the floor is {floor} %.")
    if share < floor:
        print(f"It must be at least {floor} %: test what is new. Least covered:")
        for percent, name in least[:SHOWN]:
            print(f"  {percent:5.1f} %  {name}")


if __name__ == "__main__":
    main()
