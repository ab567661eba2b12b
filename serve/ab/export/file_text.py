"""Text of the files that an export writes: filled templates, and YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def template(name: str, **fields: Any) -> str:
    """Return a template of this folder, filled."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.get_template(name).render(**fields)


def to_yaml(*documents: Mapping[str, Any]) -> str:
    """Return documents as YAML, without its anchors: what is alike is written out."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return str(yaml.dump_all(documents, Dumper=Plain, sort_keys=False, width=120))
