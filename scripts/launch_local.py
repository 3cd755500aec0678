"""Several CPU processes of one command on this machine: `launch_local.py -n 2 finetune --config FILE`."""

import argparse
import sys

from jaxlm.errors import UserError
from jaxlm.parallel.launch import launch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("-n", "--processes", type=int, required=True, metavar="N")
parser.add_argument("--devices-per-process", type=int, default=1, metavar="K", help="CPU devices of each (default: 1)")
parser.add_argument("command", nargs=argparse.REMAINDER, help="pretrain, finetune, evaluate or predict, as typed")
options = parser.parse_args()
try:
    sys.exit(launch(options.command, processes=options.processes, devices=options.devices_per_process))
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
