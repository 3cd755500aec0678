"""`jaxlm convert` as a script."""

import sys

from jaxlm.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
