#!/usr/bin/env python
"""Record Meta-World demonstrations with the scripted expert.

MUJOCO_GL=osmesa python scripts/record_metaworld_demos.py --task metaworld-drawer-open \
    --root outputs/drawer_open --episodes 50
"""

import sys

from lerobot_theia.demos.metaworld import main

if __name__ == "__main__":
    sys.exit(main())
