"""`python -m comity.worker`."""

import sys

from comity.worker.command import main

if __name__ == "__main__":
    sys.exit(main())
