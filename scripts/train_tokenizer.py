"""`jaxlm train-tokenizer` as a script."""

import sys

from jaxlm.cli import run

run(["train-tokenizer", *sys.argv[1:]])
