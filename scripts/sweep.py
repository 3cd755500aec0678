"""`jaxlm sweep` as a script."""

import sys

from jaxlm.cli import run

run(["sweep", *sys.argv[1:]])
