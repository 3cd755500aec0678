"""`jaxlm convert` as a script."""

import sys

from jaxlm.cli import run

run(["convert", *sys.argv[1:]])
