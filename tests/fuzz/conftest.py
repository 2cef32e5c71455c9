"""What tests of evaluation set beside each other is damaged here."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
