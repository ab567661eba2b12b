"""`--lora-modules` of a pruned model, of a plan and of a draft, before an engine is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from mi_prun.process_group import free_port
from serve.adapters import check_adapters
from serve.served_model import ServedModel, drafted_model, planned_model, served_model
from vllm_ext import compat, draft

RENUMBERED = "adapter tuned: block numbers of the dense model, renumbered; left out: 2 of 6 tensors"


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """`adapter(base, blocks)`: a folder as peft writes it. Of the dense model block 3 is dropped."""

    def make(base: str | Path, blocks: tuple[int, ...] = (1, 3, 5), *, width: int = 1) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir()
        name = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}.weight"
        tensors = {name.format(block, "A"): torch.ones(1, width) for block in blocks}
        tensors |= {name.format(block, "B"): torch.ones(width, 1) for block in blocks}
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(base), "r": 1, "lora_alpha": 1, "target_modules": ["o_proj"]})
        )
        return folder

    return make


def flags(*paths: str | Path) -> Namespace:
    return Namespace(lora_modules=[Namespace(name="tuned", path=str(path)) for path in paths], enable_lora=True)


@pytest.fixture
def plan(pruned: Path, tmp_path: Path) -> Path:
    read_manifest(pruned).plan.write(tmp_path / "plan.json")
    return tmp_path / "plan.json"


@pytest.fixture(params=["written", "planned"])
def served(request: pytest.FixtureRequest, reference: Path, pruned: Path, plan: Path, tmp_path: Path) -> ServedModel:
    """A pruned folder, and the dense one with a plan that drops the same blocks."""
    return served_model(str(pruned)) if request.param == "written" else planned_model(str(reference), plan, tmp_path)


def test_it_is_said_that_an_adapter_of_the_dense_model_is_renumbered(
    adapter: Callable[..., Path], reference: Path, served: ServedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    check_adapters(served, flags(adapter(reference)))
    assert capsys.readouterr().err.startswith(RENUMBERED)


def test_an_adapter_of_the_pruned_model_is_left(
    adapter: Callable[..., Path], pruned: Path, served: ServedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    check_adapters(served, flags(adapter(pruned)))
    assert capsys.readouterr().err == ""


def test_what_may_be_eithers_is_refused(adapter: Callable[..., Path], pruned: Path) -> None:
    with pytest.raises(UserError, match=r"may be those of the pruned model \(9 blocks\) or of the dense one \(12\)"):
        check_adapters(served_model(str(pruned)), flags(adapter("nowhere/at-all")))


def test_an_adapter_of_a_pruned_model_does_not_go_on_a_dense_one(
    adapter: Callable[..., Path], reference: Path, pruned: Path
) -> None:
    dense, folder = served_model(str(reference)), adapter(reference)
    check_adapters(dense, flags(folder, "owner/of-the-hub"))
    fields = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"base_model_name_or_path": str(pruned)}))
    with pytest.raises(UserError, match="was trained on a pruned model"):
        check_adapters(dense, flags(folder))


def test_a_draft_does_not_go_with_adapters(reference: Path, plan: Path, tmp_path: Path) -> None:
    """Nor in an engine that another server started."""
    served = drafted_model(str(reference), plan, None, tmp_path)
    with pytest.raises(UserError, match="--draft does not go with --enable-lora"):
        check_adapters(served, flags())
    check_adapters(served, Namespace(lora_modules=None, enable_lora=False))
    with pytest.raises(UserError, match="--draft does not go with --enable-lora"):
        draft.check_no_adapters(Namespace(lora_config=object()))
    draft.check_no_adapters(Namespace(lora_config=None))


def test_a_folder_that_is_not_there(pruned: Path) -> None:
    with pytest.raises(UserError, match=r"--lora-modules tuned: no such folder.*: /not/here"):
        check_adapters(served_model(str(pruned)), flags("/not/here"))


def test_a_vllm_that_reads_adapters_in_another_way(
    pruned: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without a module: the running server may be given one. A dense model does not care."""

    def other() -> None:
        raise UserError("another way")

    monkeypatch.setattr(compat, "lora_manager_class", other)
    check_adapters(served_model(str(reference)), flags())
    check_adapters(served_model(str(pruned)), Namespace(lora_modules=None, enable_lora=False))
    with pytest.raises(UserError, match="another way"):
        check_adapters(served_model(str(pruned)), flags())


@pytest.mark.long
@pytest.mark.parametrize("form", ["name=path", "JSON"])
def test_the_command_refuses_in_one_line(adapter: Callable[..., Path], pruned: Path, form: str) -> None:
    """In both of vLLM's forms, before an engine is started."""
    folder = adapter("nowhere/at-all")
    module = f"tuned={folder}" if form == "name=path" else json.dumps({"name": "tuned", "path": str(folder)})
    command = [sys.executable, "-m", "serve.cli", "--model", str(pruned), "--port", str(free_port())]
    done = subprocess.run(
        [*command, "--enable-lora", "--lora-modules", module],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: adapter ")
    assert '"mi_prun_blocks": "dense" or "pruned" in its adapter_config.json' in last
    assert "Traceback" not in done.stderr


def post(url: str, **fields: str) -> tuple[int, str]:
    """Return the status and the body of the answer."""
    request = urllib.request.Request(url, json.dumps(fields).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.engine
@pytest.mark.long
def test_an_adapter_that_a_running_server_is_given(
    start_server: Callable[..., Any],
    adapter: Callable[..., Path],
    reference: Path,
    plan: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of the dense model is renumbered; one that may be either's is refused in words, and the server goes on."""
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    server = start_server(str(reference), "--plan", str(plan), "--enable-lora")
    folder = adapter(reference, width=256)
    status, said = post(f"{server.url}/v1/load_lora_adapter", lora_name="dense", lora_path=str(folder))
    assert status == 200, said
    assert "adapter dense: block numbers of the dense model, renumbered" in server.group.log.read_text()
    fields = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"base_model_name_or_path": "nowhere/at-all"}))
    status, said = post(f"{server.url}/v1/load_lora_adapter", lora_name="unclear", lora_path=str(folder))
    assert status >= 400
    assert (
        "may be those of the pruned model (9 blocks) or of the dense one (12)" in json.loads(said)["error"]["message"]
    )
    for model, wanted in (("dense", 200), ("unclear", 404), (str(reference), 200)):
        assert post(f"{server.url}/v1/completions", model=model, prompt="The old man")[0] == wanted
