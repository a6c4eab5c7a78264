"""Demonstrations made on the spot: simulated experts recorded as LeRobotDataset v3.

Importing this package imports no simulator; the functions do, when they are called.
"""
