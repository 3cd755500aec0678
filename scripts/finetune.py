"""`jaxlm finetune` as a script."""

import sys

from jaxlm.cli import run

run(["finetune", *sys.argv[1:]])
