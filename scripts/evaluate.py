"""`jaxlm evaluate` as a script."""

import sys

from jaxlm.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
