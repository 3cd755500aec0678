"""`jaxlm pretrain` as a script."""

import sys

from jaxlm.cli import main

sys.exit(main(["pretrain", *sys.argv[1:]]))
