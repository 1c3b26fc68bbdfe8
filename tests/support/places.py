"""Where the repository and its demo checkpoints lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"
