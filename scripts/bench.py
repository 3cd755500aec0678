"""`jaxlm bench` as a script."""

import sys

from jaxlm.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
