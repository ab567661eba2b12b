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

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.model.weight_files import INDEX_NAME
from serve.scratch import PREFIX

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


def served_by(server: Any) -> tuple[Any, Any]:
    """What the pruning route says, and the answer to a prompt under the name that the user gave."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    (model,) = client.models.list().data
    answer = client.completions.create(model=model.id, prompt=PROMPT, max_tokens=12, temperature=0)
    return get(f"{server.url}/v1/pruning"), (model.id, answer.choices[0].text)


def scratch_folders(processes: list[psutil.Process]) -> set[Path]:
    """Of these alone: each has a helper to remove it, which is told its name."""
    last_words = [process.cmdline()[-1:] for process in processes]
    return {Path(word) for words in last_words for word in words if Path(word).name.startswith(PREFIX)}


def one_file_a_block(model: Path, out: Path) -> Path:
    """The same model in more files."""
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(model / "model.safetensors")
    homes = {
        name: f"model-{name.split('.')[2] if name.startswith('model.layers.') else 'rest'}.safetensors"
        for name in weights
    }
    for home in set(homes.values()):
        save_file({name: tensor for name, tensor in weights.items() if homes[name] == home}, out / home)
    (out / INDEX_NAME).write_text(json.dumps({"weight_map": homes}))
    return out


@torch.inference_mode()
def answer_of(model: Path, prompt: str, *, without: tuple[int, ...] = ()) -> str:
    """What stock transformers says, greedily; without those blocks."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = tokenizer(prompt, return_tensors="pt")
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for block in sorted(without, reverse=True):
        del dense.model.layers[block]
    said = dense.generate(**tokens, max_new_tokens=12, do_sample=False, use_cache=False)
    return str(tokenizer.decode(said[0]).removeprefix(tokenizer.decode(tokens["input_ids"][0])))


@pytest.mark.parametrize(
    ("signum", "flag", "ranks"),
    [(signal.SIGINT, "--plan", 1), pytest.param(signal.SIGKILL, "--draft", 2, marks=pytest.mark.long)],
)
def test_it_serves_and_nothing_is_left_when_it_is_ended(
    start_server: Callable[..., Any],
    reference: Path,
    pruned: Path,
    tmp_path: Path,
    hub: Any,
    monkeypatch: pytest.MonkeyPatch,
    nothing_left: Callable[..., bool],
    engine_cores: Callable[..., list[psutil.Process]],
    signum: signal.Signals,
    flag: str,
    ranks: int,
) -> None:
    """A pruned model out of the dense one's files on the hub, and the dense one with a draft, on two ranks. Only the
    server is told to end; its engine core and workers must follow, kill -9 included, and so must its temporary folder.
    """
    plan, model = tmp_path / "plan.json", "owner/reference"
    read_manifest(pruned).plan.write(plan)
    hub.models[model] = one_file_a_block(reference, tmp_path / "reference")
    # With a process for each worker, as a user has it.
    for variable, value in (hub.environment(tmp_path / "cache") | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    if ranks > 1:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    server = start_server(model, flag, str(plan), "--tensor-parallel-size", str(ranks))
    said, (name, answer) = served_by(server)
    assert name == model
    downloaded = {file for file in hub.asked if file.endswith(".safetensors")}
    blocks = said["kept_blocks"] if flag == "--plan" else range(12)
    assert downloaded == {f"model-{block}.safetensors" for block in ("rest", *blocks)}
    if flag == "--plan":
        assert (said["pruned"], said["dropped_blocks"], said["weights"]) == (True, [2, 3, 7], "virtual")
        assert answer == answer_of(reference, PROMPT, without=(2, 3, 7))
    else:
        assert (said["pruned"], said["draft"]["dropped_blocks"]) == (False, [2, 3, 7])
        assert answer == answer_of(reference, PROMPT)  # a draft does not change it
        assert server.group.log.read_text().count("The draft has 9 blocks of the served model") == ranks
    processes = server.group.processes()
    made = scratch_folders(processes)
    assert all(folder.is_dir() for folder in made)
    assert len(made) == 1
    assert engine_cores(processes)
    assert len(processes) >= 1 + ranks
    server.group.process.send_signal(signum)
    status = server.group.process.wait(90)
    assert status == (-signum if signum == signal.SIGKILL else 0)
    assert nothing_left(processes)
    assert not any(folder.exists() for folder in made)
    (kept,) = (tmp_path / "user" / "mi-prun" / "served").iterdir()  # so that the next start finds what vLLM compiled
    assert (kept / "config.json").is_file()


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
