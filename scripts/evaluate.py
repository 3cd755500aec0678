"""`jaxlm evaluate` as a script."""

import sys

from jaxlm.cli import run

run(["evaluate", *sys.argv[1:]])
