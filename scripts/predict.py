"""`jaxlm predict` as a script."""

import sys

from jaxlm.cli import run

run(["predict", *sys.argv[1:]])
