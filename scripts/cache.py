#!/usr/bin/env python
"""Look after feature caches: `python scripts/cache.py ls | info PATH | verify PATH | rm PATH`."""

from lerobot_theia.scripts.cache import main

if __name__ == "__main__":
    main()
