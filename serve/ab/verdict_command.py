"""The command `mi-prun-ab verdict`: what a running proxy has found, for a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mi_prun.errors import UserError
from serve.ab.config import ADMIN_KEY_VARIABLE
from serve.ab.verdict.quantities import QUANTITIES
from serve.ab.verdict.schema import Comparison, Figure, Verdict
from serve.flag_parser import FlagParser

TIMEOUT_S = 10.0


def command(arguments: list[str]) -> None:
    """Run `mi-prun-ab verdict`."""
    parser = FlagParser("mi-prun-ab verdict")
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8080", help="URL of the proxy (default: %(default)s)")
    add("--admin-key-file", type=Path, metavar="FILE", help=f"default: {ADMIN_KEY_VARIABLE} of the environment")
    add("--json", action="store_true", help="all of it, as the proxy says it")
    add("--reset", action="store_true", help="begin anew, with no figures and no broken guardrail")
    flags = parser.parse_args(arguments)
    verdict = ask(flags.url, _key(flags.admin_key_file), reset=flags.reset)
    print(verdict.model_dump_json(indent=2) if flags.json else "\n".join(lines(verdict)))


def _key(path: Path | None) -> str:
    if path is None:
        key = os.environ.get(ADMIN_KEY_VARIABLE, "")
    else:
        try:
            key = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}") from error
    if not key.isascii() or not key.isprintable():
        raise UserError("the admin key must be printable ASCII")
    return key


def ask(url: str, key: str, *, reset: bool = False) -> Verdict:
    """Return the verdict of the proxy at a URL. Raises UserError where none answers there, or this one will not."""
    import httpx

    method, path = ("POST", "/admin/verdict/reset") if reset else ("GET", "/admin/verdict")
    try:
        # Past any http_proxy, which is not to read the key.
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.request(method, url.rstrip("/") + path, headers=headers, timeout=TIMEOUT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UserError(f"no mi-prun-ab answers at {url}: {error}") from error
    if answer.status_code in (401, 403):
        raise UserError(f"{url} wants the admin key: set {ADMIN_KEY_VARIABLE}, or name --admin-key-file")
    if answer.status_code != 200:
        raise UserError(f"{url} answered with status {answer.status_code}: is it a mi-prun-ab?")
    try:
        return Verdict.model_validate_json(answer.content)
    except ValueError as error:
        raise UserError(f"{url} gave a verdict that this release cannot read") from error


def lines(verdict: Verdict) -> Iterator[str]:
    """Yield the lines of a verdict: its sentence, then a row for each figure of each arm."""
    yield verdict.text
    for note in verdict.notes:
        yield f"note: {note}"
    figures = {arm.arm: arm.figures | {"error_rate": arm.error_rate} for arm in verdict.arms}
    for comparison in verdict.comparisons:
        yield ""
        yield f"{'':16}{verdict.control:>12}{comparison.arm:>12}   {comparison.arm} / {verdict.control}"
        for name in (*QUANTITIES, "error_rate"):
            pair = (figures[verdict.control][name], figures[comparison.arm][name])
            yield f"{name:16}{_value(pair[0]):>12}{_value(pair[1]):>12}   {_ratio(comparison, name)}"
        for guardrail in comparison.guardrails:
            value = "-" if guardrail.value is None else f"{guardrail.value:.4g}"
            yield f"guardrail {guardrail.text}: {guardrail.standing} ({value})"


def _value(figure: Figure) -> str:
    return "-" if figure.mean is None else f"{figure.mean:.4g}"


def _ratio(comparison: Comparison, name: str) -> str:
    if name not in comparison.differences:
        return ""
    difference = comparison.differences[name]
    interval = difference.ratio_interval
    if difference.ratio is None or interval is None or interval.low is None:
        return "too few"
    return f"{difference.ratio:.3f} ({interval.low:.3f}..{'' if interval.high is None else f'{interval.high:.3f}'})"
