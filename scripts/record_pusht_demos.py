#!/usr/bin/env python
"""Record PushT demonstrations: `python scripts/record_pusht_demos.py --root outputs/pusht_expert --episodes 100`."""

import sys

from lerobot_theia.demos.pusht import main

if __name__ == "__main__":
    sys.exit(main())
