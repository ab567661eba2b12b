"""What the tests of more than one package share: tiny random models as real folders, pruned ones, and a hub."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
import torch

from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.process_group import ProcessGroup, alive
from mi_prun.proving.prover import randomise

# A suite that a shell started in the background ignores SIGINT, and so would every program that a test interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline on a busy machine; what failed can be run again from the log alone.
hypothesis.settings.register_profile("mi-prun", deadline=None, print_blob=True)
hypothesis.settings.load_profile("mi-prun")

# Of fuzzed inputs all examples are tried, drawn anew each time, or a share of them, the same each time (`make test`).
FUZZ_SHARE = float(os.environ.get("MI_PRUN_FUZZ_SHARE", "1"))
hypothesis.settings.register_profile(
    "fuzzed", max_examples=round(2_000 * FUZZ_SHARE), deadline=None, database=None, derandomize=FUZZ_SHARE < 1
)

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """`tiny(model_type, **config fields)` saves a random model of that type into a folder of its own."""

    def make(
        model_type: str,
        *,
        folder: str = "dense",
        max_shard_size: str = "5GB",
        dtype: torch.dtype = torch.float32,
        base: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(model_type, **((SMALL if base is None else base) | fields))
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        randomise(model)
        path = tmp_path / folder
        model.save_pretrained(path, max_shard_size=max_shard_size)
        return path

    return make


@pytest.fixture
def small() -> dict[str, Any]:
    """Config fields of a small text model."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def quantise() -> Callable[[Path, str, list[str]], None]:
    """`quantise(folder, "int" or "float", ignored modules)` in place: W8A8 as llm-compressor writes it without data.

    Weights by output channel, activations by token as they come.
    """
    from safetensors.torch import load_file, save_file

    def change(folder: Path, kind: str, ignore: list[str]) -> None:
        largest, dtype = (127, torch.int8) if kind == "int" else (448, torch.float8_e4m3fn)
        homes: dict[str, str] = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors = {}
            for name, tensor in load_file(file).items():
                module = name.removesuffix(".weight")
                if not module.endswith("_proj") or module in ignore:
                    tensors[name] = tensor
                    continue
                scale = tensor.float().abs().amax(1, keepdim=True) / largest
                steps = (tensor.float() / scale).clamp(-largest, largest)
                tensors[name] = (steps.round() if kind == "int" else steps).to(dtype)
                tensors[f"{module}.weight_scale"] = scale.to(tensor.dtype)
            save_file(tensors, file, {"format": "pt"})
            homes |= dict.fromkeys(tensors, file.name)
        if len(set(homes.values())) > 1:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
        what = {"num_bits": 8, "type": kind, "symmetric": True}
        group = {
            "targets": ["Linear"],
            "weights": {**what, "strategy": "channel", "dynamic": False},
            "input_activations": {**what, "strategy": "token", "dynamic": True},
        }
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": f"{kind}-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head", *ignore],
        }
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.fixture(scope="session")
def rewrite_header() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """Change a safetensors header in place, its length and every byte of a tensor as they were."""

    def rewrite(shard: Path, change: Callable[[dict[str, Any]], None]) -> None:
        data = shard.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
        assert len(text) == length
        shard.write_bytes(data[:8] + text + data[8 + length :])

    return rewrite


@pytest.fixture(scope="session")
def prune() -> Callable[..., Path]:
    """`prune(dense, out, dropped)` writes the checkpoint that lacks those blocks."""

    def make(source: Path, out: Path, dropped: Sequence[int], *, virtual: bool = False) -> Path:
        folder = open_model(source)
        identity = folder.identity
        kept = kept_blocks(identity.num_blocks, dropped)
        plan = Plan(dense=identity, dropped=tuple(dropped), kept=kept, method="by hand")
        write_checkpoint(folder, plan, out, virtual=virtual)
        return out

    return make


@pytest.fixture(scope="session")
def reference() -> Path:
    """The bundled 12-block model: trained, so that its quality means something."""
    return Path(__file__).parents[1] / "bench" / "reference"


@pytest.fixture(scope="session")
def nothing_left() -> Callable[[Sequence[psutil.Process]], bool]:
    """`nothing_left(processes)`: whether all end by themselves, soon after one of them was told to or did."""

    def wait(processes: Sequence[psutil.Process]) -> bool:
        deadline = time.monotonic() + 60
        while any(map(alive, processes)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return not any(map(alive, processes))

    return wait


@pytest.fixture(scope="session")
def engine_cores() -> Callable[[Sequence[psutil.Process]], list[psutil.Process]]:
    """`engine_cores(processes)`: those that compute, by the title that vLLM gives itself (VLLM::EngineCore)."""

    def find(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
        found = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if "EngineCore" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    return find


ANSWER = "answer of the program: "


class Program:
    """A program that answers jobs, lines of JSON on its stdin, one after the other. A job that fails ends it."""

    def __init__(self, script: Path, log: Path, environment: dict[str, str]) -> None:
        self.group = ProcessGroup([sys.executable, str(script), ANSWER], log, environment, stdin=subprocess.PIPE)
        self._read = 0

    def ask(self, job: Any, *, timeout_s: float = 500.0) -> tuple[Any, str]:
        """Its answer, and what it printed since the answer before."""
        assert self.group.process.stdin is not None
        self.group.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.group.process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self.group.process.poll() is not None  # before the log is read: all that it said is there
            said = self.group.log.read_text(errors="replace")[self._read :]
            before, found, rest = said.partition(f"\n{ANSWER}")
            if found and "\n" in rest:
                answer = rest[: rest.index("\n") + 1]
                self._read += len(before) + len(found) + len(answer)
                return json.loads(answer), before
            assert not ended, said[-3_000:]
            assert time.monotonic() < deadline, said[-3_000:]
            time.sleep(0.1)


@pytest.fixture(scope="session")
def program(
    tmp_path_factory: pytest.TempPathFactory, nothing_left: Callable[[Sequence[psutil.Process]], bool]
) -> Iterator[Callable[..., Program]]:
    """`program(script, **environment)`: a living one, the same for all tests: to import vLLM takes longer than most
    of what an engine is asked. At the end none of its processes is left.
    """
    started: dict[tuple[Any, ...], Program] = {}

    def living(script: Path, **environment: str) -> Program:
        which = script, *sorted(environment.items())
        if which not in started or started[which].group.process.poll() is not None:
            started[which] = Program(script, tmp_path_factory.mktemp("program") / "log", environment)
            stack.enter_context(started[which].group)
        return started[which]

    with contextlib.ExitStack() as stack:
        yield living
        for each in started.values():
            assert each.group.process.stdin is not None
            each.group.process.stdin.close()
        for each in started.values():
            assert nothing_left(each.group.processes())


@dataclass
class Hub:
    """A stand-in for the hub, on a local port. asked: the files that were downloaded, in the order they were asked for.

    broken: files that the hub breaks off in the middle. refusal: status and headers of every answer, if it is given.
    """

    models: dict[str, Path] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    refusal: tuple[int, dict[str, str]] | None = None
    url: str = ""

    def commit(self, model: str) -> str:
        """Of what the model's folder holds now."""
        folder = self.models[model]
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())]
        return hashlib.sha1(" ".join(digests).encode()).hexdigest()

    def environment(self, cache: Path) -> dict[str, str]:
        """For a process that has no other hub, with a cache of its own."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}


class HubRequest(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as `huggingface_hub.snapshot_download` speaks."""

    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        words = urllib.parse.unquote(self.path.partition("?")[0]).strip("/").split("/")
        api = words[:2] == ["api", "models"]
        model, rest = "/".join(words[2:4] if api else words[:2]), words[4:] if api else words[2:]
        folder = self.hub.models.get(model)
        commit = self.hub.commit(model) if folder else ""
        if self.hub.refusal is not None:
            self._send(self.hub.refusal[0], b"", self.hub.refusal[1])
        elif folder is None or rest[1:2] not in ([], ["main"], [commit]):
            self._send(404, b"", {"X-Error-Code": "RepoNotFound" if folder is None else "RevisionNotFound"})
        elif rest[:1] == ["resolve"]:
            data = (folder / rest[2]).read_bytes()
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            if with_body:
                self.hub.asked.append(rest[2])
            self._send(200, data, headers, with_body=with_body, broken=rest[2] in self.hub.broken)
        elif rest[:1] == ["tree"]:
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in sorted(folder.iterdir())
            ]
            self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        else:
            said = {"id": model, "sha": commit, "siblings": []}
            self._send(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, data: bytes, headers: dict[str, str], *, with_body: bool = True, broken: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data[: len(data) // 2] if broken else data)
            self.close_connection = broken

    def log_message(self, *words: Any) -> None:
        pass


@contextlib.contextmanager
def hub_on_a_port() -> Iterator[Hub]:
    found = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Request", (HubRequest,), {"hub": found}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def hub_of_others() -> Iterator[Hub]:
    """For processes that are given its `environment`; this process does not know it."""
    with hub_on_a_port() as found:
        yield found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """This process knows no other hub; its cache is empty."""
    from huggingface_hub import constants

    with hub_on_a_port() as found:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield found
