"""`mi-prun-serve` on real vLLM: the OpenAI API, the pruning route, the same log-probabilities, and its end."""

from __future__ import annotations

import json
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.engine

PROMPT = "The old man"


def get(url: str, key: str | None = None) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_pruning_says_what_was_dropped(server: Any, key: str) -> None:
    said = get(f"{server.url}/v1/pruning", key)
    assert said["dropped_blocks"] == [2, 3, 7]
    assert said["block_indices"] == "0-based"
    assert said["method"] == "by hand"


def test_the_api_key_guards_the_pruning_route_too(server: Any) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(f"{server.url}/v1/pruning")


def test_vllms_own_flags_are_passed_on(server: Any, key: str) -> None:
    models = get(f"{server.url}/v1/models", key)["data"]
    assert [(model["id"], model["max_model_len"]) for model in models] == [("p25", 256)]


def test_the_openai_client_streams_a_completion(server: Any, key: str) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key=key)
    whole = client.completions.create(model="p25", prompt="The old man", max_tokens=12, temperature=0)
    stream = client.completions.create(model="p25", prompt="The old man", max_tokens=12, temperature=0, stream=True)
    assert whole.choices[0].text.strip()
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


@torch.inference_mode()
def test_log_probabilities_are_those_of_the_dense_model_without_the_blocks(
    server: Any, key: str, reference: Path
) -> None:
    from openai import OpenAI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "It was the best of times, it was the worst of times, and the old man opened the door."
    tokens = AutoTokenizer.from_pretrained(reference)(text)["input_ids"]
    client = OpenAI(base_url=f"{server.url}/v1", api_key=key)
    answer = client.completions.create(
        model="p25", prompt=tokens, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 0}
    )
    places = answer.choices[0].model_extra["prompt_logprobs"]  # type: ignore[index]
    found = [place[str(token)]["logprob"] for token, place in zip(tokens, places, strict=True) if place]

    dense = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    for block in (7, 3, 2):
        del dense.model.layers[block]
    log_p = torch.log_softmax(dense(torch.tensor([tokens]), use_cache=False).logits[0, :-1], -1)
    wanted = log_p.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]
    assert (torch.tensor(found) - wanted).abs().max() < 1e-4


@torch.inference_mode()
def answer_of(model: Path, prompt: str) -> str:
    """What stock transformers says, greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = tokenizer(prompt, return_tensors="pt")
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    said = dense.generate(**tokens, max_new_tokens=12, do_sample=False, use_cache=False)
    return str(tokenizer.decode(said[0]).removeprefix(tokenizer.decode(tokens["input_ids"][0])))


def test_of_the_dense_model_only_files_of_kept_blocks_are_downloaded(server: Any, key: str, hub_of_others: Any) -> None:
    said = get(f"{server.url}/v1/pruning", key)
    assert (said["pruned"], said["weights"]) == (True, "virtual")
    downloaded = {file for file in hub_of_others.asked if file.endswith(".safetensors")}
    assert downloaded == {f"model-{block}.safetensors" for block in ("rest", *said["kept_blocks"])}


@pytest.mark.long
def test_a_draft_on_two_ranks_under_the_name_that_the_user_gave(
    start_server: Callable[..., Any],
    on_the_hub: tuple[str, Path, dict[str, str]],
    ends_with: Callable[..., None],
    reference: Path,
    tmp_path: Path,
) -> None:
    from openai import OpenAI

    model, plan, environment = on_the_hub
    environment = environment | {"XDG_CACHE_HOME": str(tmp_path / "user"), "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    server = start_server(model, "--draft", str(plan), "--tensor-parallel-size", "2", environment=environment)
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    assert [served.id for served in client.models.list().data] == [model]
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0)
    assert answer.choices[0].text == answer_of(reference, PROMPT)  # a draft does not change it
    said = get(f"{server.url}/v1/pruning")
    assert (said["pruned"], said["draft"]["dropped_blocks"]) == (False, [2, 3, 7])
    assert server.group.log.read_text().count("The draft has 9 blocks of the served model") == 2
    assert len(server.group.processes()) >= 3
    ends_with(server, signal.SIGKILL, -signal.SIGKILL, tmp_path / "user")


@pytest.mark.long
def test_a_fault_that_only_the_engine_finds_is_one_line_too(
    end_of: Callable[..., tuple[int, str]],
    rewrite_header: Callable[..., None],
    prune: Callable[..., Path],
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dense model that never fitted its config, and a virtual folder of it: between the two nothing is wrong.

    On two ranks, of which each finds it. The server's line is the last.
    """
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    dense = Path(shutil.copytree(reference, tmp_path / "dense"))
    name = "model.layers.4.mlp.gate_proj.weight"
    rewrite_header(dense / "model.safetensors", lambda header: header[name]["shape"].reverse())
    virtual = prune(dense, tmp_path / "virtual", [2], virtual=True)
    status, said = end_of(virtual, "--tensor-parallel-size", "2")
    assert status == 2, said[-3_000:]
    last = said.splitlines()[-1]
    assert last.startswith(f"error: model {virtual} does not fit its config: ")
    assert last.endswith("the tensor read last was 'model.layers.3.mlp.gate_proj.weight' of shape [256, 640]")
