"""Cut the schemas of the kinds that an export writes out of the Python package `kubernetes-validate`.

    pip install --no-deps --target DIR kubernetes-validate==1.37.0
    python tests/serve/ab/export/schemas/cut.py DIR 1.34 1.35 1.36 1.37

It writes kubernetes-VERSION.json beside itself: strict (unknown fields are refused), without descriptions and
without status, which no manifest has.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KINDS = {
    "Deployment": "deployment-apps-v1",
    "Service": "service-v1",
    "PodDisruptionBudget": "poddisruptionbudget-policy-v1",
    "HorizontalPodAutoscaler": "horizontalpodautoscaler-autoscaling-v2",
}
ELSEWHERE = "/api/_definitions.json"


def cut(schema: Any) -> Any:
    """Return a schema without descriptions, whose references are to its own file."""
    if isinstance(schema, list):
        return [cut(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    left = {}
    for key, value in sorted(schema.items()):
        if key == "properties":
            left[key] = {name: cut(part) for name, part in sorted(value.items())}
        elif key == "$ref":
            left[key] = value.removeprefix(ELSEWHERE)
        elif key != "description" and not key.startswith(("x-", "$schema", "$id")):
            left[key] = cut(value)
    return left


def references(schema: Any) -> set[str]:
    """Return the names of all definitions that a schema names."""
    if isinstance(schema, list):
        return set().union(*map(references, schema))
    if not isinstance(schema, dict):
        return set()
    found = set().union(*map(references, schema.values()))
    return found | ({schema["$ref"].removeprefix("#/$defs/")} if isinstance(schema.get("$ref"), str) else set())


def main(package: Path, versions: list[str]) -> None:
    for version in versions:
        folder = package / "kubernetes_validate" / "kubernetes-json-schema" / f"v{version}.0-local-strict"
        definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]
        kept = {kind: cut(json.loads((folder / f"{name}.json").read_text())) for kind, name in KINDS.items()}
        for schema in kept.values():
            schema["properties"].pop("status", None)
        while missing := references(kept) - kept.keys():
            kept |= {name: cut(definitions[name]) for name in missing}
        document = {"$defs": dict(sorted(kept.items())), "$schema": "https://json-schema.org/draft/2020-12/schema"}
        target = Path(__file__).with_name(f"kubernetes-{version}.json")
        target.write_text(json.dumps(document, separators=(",", ":")) + "\n")
        print(f"{target.name}: {len(kept)} definitions")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
