"""Let the tests of sharded weights import their ranks and worlds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
