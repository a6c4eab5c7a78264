"""How good are the policies? Success and reward of arms that differ in what they see, in simulation.

`run.py` measures, one experiment after the other; `report.py` writes docs/quality.md from what was measured.
"""
