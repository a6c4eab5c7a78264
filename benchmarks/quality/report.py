"""docs/quality.md and its pictures, from the JSON under benchmarks/results/. Nothing is measured here.

python benchmarks/quality/report.py
"""

import argparse
import json
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> None:
    from benchmarks.common import RESULTS
    from benchmarks.quality.page import write
    from benchmarks.quality.results import FOLDER

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="benchmarks/results")
    parser.add_argument("--page", type=Path, default=CHECKOUT / "docs" / "quality.md")
    options = parser.parse_args()
    results = [json.loads(path.read_text()) for path in sorted(options.results.glob(f"*/{FOLDER}/*.json"))]
    write(results, options.page)
    print(options.page)


if __name__ == "__main__":
    sys.path[0] = str(CHECKOUT)  # this folder's modules are benchmarks.quality's, and nobody else's
    main()
