"""A check whether Ray takes what `mi-prun-ab export --to ray-serve -o DIR` wrote.

  python -m serve.ab.export.check_ray DIR

For a machine that has `ray[serve,llm]`, which the project does not depend on. Its own models read `serve.yaml`, and the
application is built as `serve run` builds it; no cluster is started and no model opened.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from mi_prun.console import run_command
from mi_prun.errors import UserError


def check(folder: Path) -> str:
    """Return a line that says what Ray takes. Raises UserError where it does not."""
    import yaml
    from pydantic import ValidationError

    file = folder / "serve.yaml"
    if not file.is_file():
        raise UserError(f"{folder} has no serve.yaml: name what was written by mi-prun-ab export --to ray-serve -o")
    try:
        version = importlib.import_module("ray").__version__
        schema = importlib.import_module("ray.serve.schema").ServeDeploySchema
    except ImportError as error:
        raise UserError(f"nothing is checked: pip install 'ray[serve,llm]' first ({error})") from error
    try:
        deployed = schema.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        sys.path.insert(0, str(folder))
        for application in deployed.applications:
            module, _, function = application.import_path.partition(":")
            getattr(importlib.import_module(module), function)(application.args)
    except (ValidationError, ValueError, TypeError, ImportError, AttributeError) as error:
        raise UserError(f"{folder}: Ray {version} does not take it: {error}") from error
    return f"{folder}: Ray {version} takes {', '.join(one.name for one in deployed.applications)}"


def main() -> None:
    """Run the check and end the process with its status."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(run_command(lambda: print(check(Path(sys.argv[1])))))


if __name__ == "__main__":
    main()
