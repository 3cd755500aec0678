"""`jaxlm finetune` as a script."""

import sys

from jaxlm.cli import main

sys.exit(main(["finetune", *sys.argv[1:]]))
