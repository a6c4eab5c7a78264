#!/usr/bin/env python
"""Encode every camera frame of a dataset once: `python scripts/precompute.py dataset=pusht encoder=theia_tiny_cdiv`."""

from lerobot_theia.scripts.precompute import main

if __name__ == "__main__":
    main()
