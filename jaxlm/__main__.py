"""`python -m jaxlm` is the console program."""

from jaxlm.cli import run

run()
