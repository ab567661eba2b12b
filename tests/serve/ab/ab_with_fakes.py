"""`mi-prun-ab`, whose engines are fake ones: everything else is as it is."""

from __future__ import annotations

import sys
from pathlib import Path

from serve.ab import cli, engine

engine.SERVE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))

if __name__ == "__main__":
    cli.main()
