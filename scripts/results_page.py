"""Writes benchmarks/results/README.md, the page over all committed results; --check compares.

python scripts/results_page.py [FOLDER] [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sdexport.bench.report.runs_page import find, page

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    parser.add_argument(
        "--check", action="store_true", help="fail where the page is not up to date"
    )
    arguments = parser.parse_args()
    file = arguments.folder / "README.md"
    wanted = page(find(arguments.folder))
    if not arguments.check:
        file.write_text(wanted, encoding="utf-8")
    elif not file.is_file() or file.read_text(encoding="utf-8") != wanted:
        sys.exit(f"{file} is not up to date: python scripts/results_page.py")


if __name__ == "__main__":
    main()
