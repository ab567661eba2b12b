"""What differs between vLLM versions, on the one that is installed, and versions that are refused."""

from __future__ import annotations

import pytest

from mi_prun.errors import UserError
from vllm_ext import compat


def test_the_installed_version_is_supported() -> None:
    compat.check_version()


def test_the_modules_have_what_is_used_of_them() -> None:
    server, arguments = compat.server_module(), compat.arguments_module()
    assert callable(server.build_app)
    assert callable(server.run_server)
    parser = arguments.make_arg_parser(compat.parser_class()(prog="test"))
    assert parser.parse_args(["--model", "owner/name", "--max-model-len", "128"]).max_model_len == 128
    assert callable(arguments.validate_parsed_serve_args)


@pytest.mark.parametrize(
    ("found", "fits"), [("0.24.9", False), ("0.25.0+cu130", True), ("0.34.0", False), ("x", False)]
)
def test_versions_outside_the_range_are_refused(monkeypatch: pytest.MonkeyPatch, found: str, fits: bool) -> None:
    monkeypatch.setattr(compat, "version", lambda name: found)
    if fits:
        compat.check_version()
        return
    with pytest.raises(UserError, match=rf"vLLM {found} is not supported; supported are 0\.25 to 0\.33"):
        compat.check_version()
