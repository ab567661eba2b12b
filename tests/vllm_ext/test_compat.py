"""What differs between vLLM versions, on the one that is installed, and versions that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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


def test_without_vllm_it_is_said_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "DISTRIBUTIONS", ("not-installed-anywhere",))
    with pytest.raises(
        UserError, match=r"vLLM is not installed; in a clone .* for a GPU, or make \.venv/\.installed without one"
    ):
        compat.vllm_version()


def test_the_first_place_that_is_there_is_taken() -> None:
    assert compat._first_of(("json.nowhere", "nowhere.at.all", "json.decoder")).__name__ == "json.decoder"


def test_a_module_that_cannot_import_another_is_not_taken_for_absent(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "broken_here.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        compat._first_of(("broken_here", "json"))


def test_nowhere_at_all_is_one_line() -> None:
    with pytest.raises(UserError, match=r"has none of json\.nowhere; it is not as this release knows it"):
        compat._first_of(("json.nowhere",))


def test_each_request_has_its_own_temperature_on_cpu() -> None:
    """Requests with 2, 0 and 3 drafted tokens; 0 stands for greedy and becomes 1, as vLLM's sampler asks."""
    counts = torch.tensor([2, 2, 5], dtype=torch.int32)
    found = compat._expand_batch_to_tokens(torch.tensor([0.7, 0.3, 0.0]), counts, 5, replace_from=0, replace_to=1)
    assert found.tolist() == pytest.approx([0.7, 0.7, 1.0, 1.0, 1.0])
    assert compat._expand_batch_to_tokens(torch.tensor([4, 5, 6]), counts, 5).tolist() == [4, 4, 6, 6, 6]
