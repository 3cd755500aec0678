"""`jaxlm bench` as a script."""

import sys

from jaxlm.cli import run

run(["bench", *sys.argv[1:]])
