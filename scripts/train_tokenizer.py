"""`jaxlm train-tokenizer` as a script."""

import sys

from jaxlm.cli import main

sys.exit(main(["train-tokenizer", *sys.argv[1:]]))
