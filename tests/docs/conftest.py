"""`benchmarks` is no installed package: it is found from the root of the checkout, wherever tests are started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
