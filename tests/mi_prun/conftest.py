"""What a dense model says with some blocks skipped, the bundled model, and two processes that share their work."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mi_prun.analysis.analysis import Analysis, read_analysis
from mi_prun.analysis.analyze import analyze
from mi_prun.cli import app
from mi_prun.console import run_app
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.process_group import free_port
from mi_prun.settings import AnalyzeSettings

TOKENS = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(7))
Ended = tuple[int, str, str]


@pytest.fixture(scope="session")
def two_ranks() -> Callable[[Callable[[int], None]], None]:
    """`two_ranks(work)`: two forked processes of one group, as torchrun would start them; each does `work(rank)`."""

    def run(work: Callable[[int], None]) -> None:
        fork, port = multiprocessing.get_context("fork"), str(free_port())

        def rank(number: int) -> None:
            torch.set_num_threads(1)  # a forked process has none of its parent's threads
            place = {"RANK": str(number), "LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update(place | {"WORLD_SIZE": "2"})
            work(number)

        processes = [fork.Process(target=rank, args=(number,), daemon=True) for number in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]

    return run


@pytest.fixture(scope="session")
def load() -> Callable[[Path], BlockModel]:
    """A model folder in float32 on CPU."""
    return lambda path: load_block_model(open_model(path), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """`run(*words)`: `mi-prun` with these words in this process; its exit status, stdout and stderr."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mi-prun", *map(str, words)])
        try:
            status = run_app(app)
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def make_plan() -> Callable[[Path, Sequence[int]], Plan]:
    def make(path: Path, dropped: Sequence[int]) -> Plan:
        dense = open_model(path).identity
        return Plan(dense=dense, dropped=tuple(dropped), kept=kept_blocks(dense.num_blocks, dropped), method="by hand")

    return make


@torch.no_grad()
def logits(path: Path, skipped: Sequence[int] = (), blocks: str = "model.layers") -> torch.Tensor:
    """Logits of a folder opened with stock transformers, the output of each skipped block replaced by its input."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()

    def bypass(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        state = args[0] if args else kwargs["hidden_states"]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    for block in skipped:
        model.get_submodule(f"{blocks}.{block}").register_forward_hook(bypass, with_kwargs=True)
    return model(input_ids=TOKENS, use_cache=False).logits


@pytest.fixture
def logits_without() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """(tokens, logits of the dense folder with some blocks skipped)."""
    return lambda path, skipped, blocks: (TOKENS, logits(path, skipped, blocks))


@pytest.fixture
def assert_same_as_skipping() -> Callable[..., None]:
    """The pruned folder says what the dense one says without those blocks (fp32, 1e-4), and not what it says."""

    def check(dense: Path, pruned: Path, skipped: Sequence[int], blocks: str = "model.layers") -> None:
        wanted = torch.log_softmax(logits(dense, skipped, blocks), -1)
        found = torch.log_softmax(logits(pruned), -1)
        assert (found - wanted).abs().max() < 1e-4
        if skipped:
            assert (found - torch.log_softmax(logits(dense), -1)).abs().max() > 1e-2

    return check


@pytest.fixture
def assert_stock_vllm_says_the_same(program: Callable[..., Any]) -> Callable[..., None]:
    """The pruned folder on vLLM without a plugin says what the dense one says without those blocks (fp32, 1e-4).

    Further keywords are options of the engine.
    """
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")

    def check(
        dense: Path,
        pruned: Path,
        skipped: Sequence[int],
        blocks: str = "model.layers",
        *,
        tolerance: float = 1e-4,
        **engine: Any,
    ) -> None:
        job = {"folder": str(pruned), "tokens": TOKENS.tolist(), "options": engine}
        found = torch.tensor(program(Path(__file__).with_name("in_vllm.py")).ask(job)[0])

        def chosen(skip: Sequence[int]) -> torch.Tensor:
            log_p = torch.log_softmax(logits(dense, skip, blocks)[:, :-1], -1)
            return log_p.gather(-1, TOKENS[:, 1:, None])[..., 0]

        assert (found - chosen(skipped)).abs().max() < tolerance
        assert (found - chosen(())).abs().max() > max(1e-2, tolerance)  # and not what the dense one says

    return check


@pytest.fixture(scope="session")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English text, 30,000 tokens or so."""
    path = tmp_path_factory.mktemp("text") / "harbour.txt"
    path.write_text(" ".join(f"In the year {n} there were {n * n % 97} ships in the harbour." for n in range(1_000)))
    return path


@pytest.fixture(scope="session")
def analyze_settings(harbour: Path) -> AnalyzeSettings:
    return AnalyzeSettings(
        sources=(str(harbour),), scoring_tokens=256, ranking_tokens=1_024, window_tokens=64, device="cpu"
    )


@pytest.fixture(scope="session")
def reference_analysis_folder(
    tmp_path_factory: pytest.TempPathFactory, reference: Path, analyze_settings: AnalyzeSettings
) -> Path:
    out = tmp_path_factory.mktemp("reference") / "analysis"
    analyze(open_model(reference), out, analyze_settings)
    return out


@pytest.fixture(scope="session")
def reference_analysis(reference_analysis_folder: Path) -> Analysis:
    return read_analysis(reference_analysis_folder)


@pytest.fixture
def random_model(tiny: Callable[..., Path], reference: Path) -> Callable[..., Path]:
    """A tiny random model with the bundled tokenizer."""

    def make(model_type: str, **fields: Any) -> Path:
        dense = tiny(model_type, vocab_size=4096, **fields)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(reference / name, dense / name)
        return dense

    return make
