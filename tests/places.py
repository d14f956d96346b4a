"""Where this checkout lies, and the folder of published measurements beside it, which may be absent."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PLANNER_DATA", ROOT.parent / "shared" / "data"))
