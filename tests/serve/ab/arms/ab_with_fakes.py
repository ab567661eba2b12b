"""`mi-prun-ab`, whose engines are fake ones: everything else is as it is."""

from __future__ import annotations

import sys
from pathlib import Path

from serve.ab import cli
from serve.ab.arms import supervisor

supervisor.SERVE = (sys.executable, str(Path(__file__).parents[1] / "fake_engine.py"))

if __name__ == "__main__":
    cli.main()
