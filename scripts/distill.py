#!/usr/bin/env python
"""Make a Theia from teachers and images: `python scripts/distill.py corpus=pusht teachers=pusht output_dir=outputs/mine`."""

from lerobot_theia.scripts.distill import main

if __name__ == "__main__":
    main()
