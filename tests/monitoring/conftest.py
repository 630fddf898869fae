import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # readers: with import mode importlib tests are no package
