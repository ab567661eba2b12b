"""Tasks on a real engine: the scores are those that transformers gives, and another model is refused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.engines.endpoint import Endpoint, open_endpoint
from bench.engines.engine import EngineProcess, running
from bench.records.journal import results_folder
from bench.records.schema import read_lines
from bench.records.task_schema import (
    GENERATIONS_NAME,
    TASKS_NAME,
    Continuation,
    GenerationRecord,
    TaskRecord,
    TaskScore,
)
from bench.tasks import tasks
from bench.tasks.logprob_check import check_logprobs, measure
from bench.tasks.task_settings import TaskSettings
from bench.tasks.task_table import parse_tasks
from bench.tasks.tasks import ASSUMED_CONTEXT, ask, context_asked_of, open_asked, run_tasks
from mi_prun.errors import UserError
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import open_model

REFERENCE = Path(__file__).parents[3] / "bench" / "reference"
DROPPED = [2, 3, 7]
ARC = [
    {"query": "Question: Who opened the door?", "choices": ["The old man", "A cloud", "Seven"], "gold": 0},
    {"query": "Question: Where did the ship sail?", "choices": ["Into the teapot", "Over the sea"], "gold": 1},
    {"query": "Question: What does the king wear?", "choices": ["A crown", "A river", "The week"], "gold": 0},
    {"query": "Question: What is the colour of snow?", "choices": ["Loud", "White as a sheet", "Of"], "gold": 1},
]
LAMBADA = [
    {"context": "He took her by the hand and they went out. She did not let go of his", "continuation": "hand"},
    {"context": "It was the first of", "continuation": "all"},
]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    for name, rows in (("arc_easy", ARC), ("lambada_openai", LAMBADA)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def virtual(prune: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(REFERENCE, tmp_path_factory.mktemp("tasks") / "p25", DROPPED, virtual=True)


@pytest.fixture(scope="module")
def engine(virtual: Path) -> Iterator[EngineProcess]:
    flags = ("--enforce-eager", "--max-model-len", "128", "--max-num-seqs", "4", "--dtype", "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        with running(str(virtual), flags) as started:
            yield started


@pytest.fixture(scope="module")
def pruned_logprob() -> Callable[[str, str], float]:
    """`pruned_logprob(context, continuation)`: computed directly, with the blocks bypassed in transformers."""
    folder = open_model(REFERENCE)
    model = load_block_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    tokenizer = folder.tokenizer

    def logprob(context: str, continuation: str) -> float:
        ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
        start = len(tokenizer(context)["input_ids"])
        with model.without(DROPPED) as whole, torch.inference_mode():
            scores = torch.log_softmax(whole(input_ids=ids).logits[0, :-1], dim=-1)
        return float(scores.gather(-1, ids[0, 1:, None])[start - 1 :].sum())

    return logprob


@pytest.mark.engine
@pytest.mark.long
def test_scores_are_those_of_transformers(
    tmp_path: Path, items: Path, engine: EngineProcess, virtual: Path, pruned_logprob: Callable[[str, str], float]
) -> None:
    pytest.importorskip("lm_eval")
    command = [sys.executable, "-m", "bench.cli", "tasks", "--url", engine.base_url, "--generate", "8"]
    command += ["--tasks", "arc_easy,lambada_openai", "--tasks-from", str(items), "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    arc, lambada = read_lines(tmp_path, TASKS_NAME, TaskRecord)
    assert arc.arm.blocks.dropped == tuple(DROPPED)
    assert (arc.arm.model, arc.arm.weights, arc.endpoint, arc.context_tokens) == (str(virtual), "virtual", True, 128)
    assert "lm-eval" in arc.provenance.versions

    # An engine in float32 and transformers agree closely; the record says how closely.
    assert arc.logprobs is not None
    assert arc.logprobs.mean_nats < 1e-3
    assert arc.logprobs.tokens > 80

    expected = []
    for row in ARC:
        totals = [pruned_logprob(f"{row['query']}\nAnswer:", f" {choice}") for choice in row["choices"]]
        normed = [total / len(str(choice)) for total, choice in zip(totals, row["choices"], strict=True)]
        expected.append(normed.index(max(normed)) == row["gold"])
    assert arc.score.answers() == expected
    assert arc.score.score == sum(expected) / len(ARC)
    assert (arc.score.items, arc.score.truncated_items, arc.score.fewshot) == (len(ARC), 0, 0)
    mean = sum(pruned_logprob(str(row["context"]), f" {row['continuation']}") for row in LAMBADA) / len(LAMBADA)
    assert lambada.score.scores["perplexity"] == pytest.approx(float(torch.exp(torch.tensor(-mean))), rel=1e-3)

    (generated,) = read_lines(tmp_path, GENERATIONS_NAME, GenerationRecord)
    assert len(generated.continuations) == 4
    assert all(each.text for each in generated.continuations)
    assert json.loads(done.stdout.splitlines()[-1])["records"] == 2


@pytest.mark.engine
@pytest.mark.long
def test_another_model_than_the_one_served_is_refused(engine: EngineProcess, items: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    settings = TaskSettings(tuple(parse_tasks("arc_easy")), tasks_from=items, sampling=None)
    with pytest.raises(UserError, match=r"serves a model without blocks \[2, 3, 7\], .* lacks \[\] of "):
        run_tasks([str(REFERENCE)], [engine.base_url], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    # Where the server does not say what it serves, its log-probabilities do.
    with pytest.raises(UserError, match="are not those of the model"):
        check_logprobs(open_endpoint(engine.base_url), measure(str(REFERENCE), "cpu"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"limit": 0}, "--task-limit must be at least 1, got 0"),
        ({"concurrency": 0}, "--concurrency must be at least 1"),
        ({"logprob_tolerance_nats": float("nan")}, "--logprob-tolerance must be a number of at least 0 nats, got nan"),
        ({"logprob_tolerance_nats": -0.1}, "--logprob-tolerance must be a number of at least 0 nats"),
        ({"serve_flags": ("--port", "80")}, "--serve-flags may not hold --port"),
        ({"tasks_from": Path("absent")}, "--tasks-from absent: no such folder"),
    ],
)
def test_settings_that_will_not_do(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match=said):
        run_tasks([str(REFERENCE)], [], tmp_path / "out", TaskSettings(tuple(parse_tasks("boolq")), **settings))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_without_lm_eval_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.tasks.harness.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tasks need lm-eval: pip install 'lm-eval\[api\]'"):
        run_tasks([str(REFERENCE)], [], tmp_path / "out", TaskSettings(tuple(parse_tasks("boolq"))))


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, task: Callable[..., TaskRecord]) -> list[str]:
    """No engine and no lm-eval: what was started and asked, in order; every item is answered right."""
    pytest.importorskip("lm_eval")
    done: list[str] = []

    @contextlib.contextmanager
    def running(model: str, flags: Sequence[str] = ()) -> Iterator[Any]:
        done.append(f"{Path(model).name} {' '.join(flags)}".strip())
        yield SimpleNamespace(base_url=model, group=None)

    def scores(endpoint: Endpoint, spec: Any, alive: Any) -> Iterator[TaskScore]:
        for name in spec.tasks:
            if name == "piqa" and "piqa breaks" in done:
                raise KeyboardInterrupt
            done.append(name)
            yield task((), [True] * 4, task=name).score

    def generated(endpoint: Endpoint, sampling: Any) -> tuple[Continuation, ...]:
        done.append("continuations")
        return (Continuation(prompt="a", text="b"),)

    monkeypatch.setattr(tasks, "running", running)
    monkeypatch.setattr(tasks, "open_endpoint", lambda url: Endpoint(url, "m", url, 128))
    monkeypatch.setattr(tasks, "scores", scores)
    monkeypatch.setattr(tasks, "continuations", generated)
    return done


def test_what_was_answered_is_not_asked_again_in_a_sweep(
    tmp_path: Path, answering: list[str], dense: Path, prune: Callable[..., Path]
) -> None:
    pruned, out = prune(dense, tmp_path / "p25", [1]), tmp_path / "out"
    asked = open_asked([str(dense), str(pruned)], [])
    settings = TaskSettings(tuple(parse_tasks("boolq,piqa")), logprob_tolerance_nats=None, serve_flags=("--seed=1",))

    def answers(changed: TaskSettings = settings, *, again: bool = False) -> list[str]:
        answering.clear()
        with results_folder(out) as folder:
            records = ask(asked, folder, changed, again=again)
        names = [task.name for task in changed.tasks]
        assert [(r.arm.kind, r.score.task) for r in records] == [(k, n) for k in ("dense", "pruned") for n in names]
        return list(answering)

    answering.append("piqa breaks")
    with results_folder(out) as folder, pytest.raises(KeyboardInterrupt):
        ask(asked, folder, settings, again=False)
    assert answering == ["piqa breaks", "dense --seed=1", "continuations", "boolq"]
    # Killed, it goes on: the dense model's first task and its continuations are there.
    assert answers() == ["dense --seed=1", "piqa", "p25 --seed=1", "continuations", "boolq", "piqa"]
    assert answers() == []
    more = replace(settings, tasks=(*settings.tasks, *parse_tasks("arc_easy")))
    assert answers(more) == ["dense --seed=1", "arc_easy", "p25 --seed=1", "arc_easy"]
    both = ["dense --seed=1", "boolq", "piqa", "p25 --seed=1", "boolq", "piqa"]
    assert answers(replace(settings, limit=3)) == both
    everything = ["dense --seed=1", "continuations", "boolq", "piqa", "p25 --seed=1", "continuations", "boolq", "piqa"]
    assert answers(again=True) == everything
    flags = replace(settings, serve_flags=("--seed=2",))
    assert answers(flags) == [word.replace("=1", "=2") for word in everything]
    # Items of a file are told apart by what it holds.
    for text in ("first", "second"):
        for name in ("boolq", "piqa"):
            (tmp_path / f"{name}.jsonl").write_text(text)
        assert answers(replace(settings, tasks_from=tmp_path)) == both
        assert answers(replace(settings, tasks_from=tmp_path)) == []


def test_models_and_addresses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name a MODEL, or an endpoint"):
        open_asked([], [])
    flagged = TaskSettings(tuple(parse_tasks("boolq")), serve_flags=("--seed=1",))
    with pytest.raises(UserError, match="--serve-flags do not go with --url: the server runs already"):
        run_tasks(["a"], ["http://127.0.0.1:9"], tmp_path / "out", flagged)
    with pytest.raises(UserError, match="2 models and 1 --url"):
        open_asked(["a", "b"], ["http://127.0.0.1:9"])
    with pytest.raises(UserError, match="no such folder"):
        open_asked([str(tmp_path / "absent")], [])
    with pytest.raises(UserError, match="reference is named twice; leave one out"):
        open_asked([str(REFERENCE), str(REFERENCE)], [])


def test_tasks_that_no_hub_has_need_their_folder() -> None:
    with pytest.raises(
        UserError, match=r"--tasks capitals is on no hub; name the folder .* capitals\.jsonl with --tasks-f"
    ):
        tasks.check_tasks(TaskSettings(tuple(parse_tasks("arc_easy,capitals"))))
    tasks.check_tasks(TaskSettings(tuple(parse_tasks("arc_easy"))))


def test_two_of_one_method_and_ratio_are_told_apart(tmp_path: Path, dense: Path, prune: Callable[..., Path]) -> None:
    first, second = (prune(dense, tmp_path / name, [block]) for name, block in (("first", 1), ("second", 2)))
    labels = [one.model.arm.label for one in open_asked([str(first), str(dense), str(second)], [])]
    assert labels == ["by hand 25.0% (first)", "dense", "by hand 25.0% (second)"]


def test_an_endpoint_of_no_known_context_takes_the_configs(virtual: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))  # it has no longest context
    assert context_asked_of(Endpoint("http://x", "m", "m", 300), virtual) == 300
    assert context_asked_of(Endpoint("http://x", "m", "m", None), virtual) == 512
    assert context_asked_of(Endpoint("http://x", "m", "m", None), tmp_path) == ASSUMED_CONTEXT
