#!/usr/bin/env python
"""Record Meta-World demonstrations with the scripted expert.

MUJOCO_GL=osmesa python scripts/record_metaworld_demos.py --task metaworld-drawer-open \
    --root outputs/drawer_open --episodes 50
"""

import sys

from lerobot_theia.demos.metaworld import main
from lerobot_theia.scripts.signals import end_in_order

if __name__ == "__main__":
    end_in_order()  # without workers and half a dataset left behind
    sys.exit(main())
