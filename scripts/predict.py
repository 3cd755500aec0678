"""`jaxlm predict` as a script."""

import sys

from jaxlm.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
