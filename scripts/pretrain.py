"""`jaxlm pretrain` as a script."""

import sys

from jaxlm.cli import run

run(["pretrain", *sys.argv[1:]])
