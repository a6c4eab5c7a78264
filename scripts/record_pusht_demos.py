#!/usr/bin/env python
"""Record PushT demonstrations: `python scripts/record_pusht_demos.py --root outputs/pusht_expert --episodes 100`."""

import sys

from lerobot_theia.demos.pusht import main
from lerobot_theia.scripts.signals import end_in_order

if __name__ == "__main__":
    end_in_order()  # without workers and half a dataset left behind
    sys.exit(main())
