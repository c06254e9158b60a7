"""`python -m sdexport` is the command line."""

import sys

from sdexport.cli import main

if __name__ == "__main__":
    sys.exit(main())
