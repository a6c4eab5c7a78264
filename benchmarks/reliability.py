"""Faults by the hundred; what is tried, and when a trial holds, is said in tests/faults/campaign.py.

python benchmarks/reliability.py            # about half an hour on two cores
python benchmarks/reliability_report.py     # docs/reliability.md, from the results
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the processes that are killed load this file, too, and need nothing of it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.faults.campaign import main

    main()
