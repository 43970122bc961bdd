"""`python -m comity_node.cli` is the `comity` command."""

import sys

from comity_node.cli import main

sys.exit(main())
