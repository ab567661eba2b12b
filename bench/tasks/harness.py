"""Run lm-eval through a completions endpoint, in a process of its own: it is large, and prints a lot.

python -m bench.tasks.harness SPEC.json OUT.jsonl appends a TaskScore to OUT as soon as a task is done
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.engines.endpoint import TIMEOUT_S, Endpoint
from bench.records.task_schema import TaskScore, packed
from bench.tasks.task_table import TASKS, Task, configuration, local_rows
from mi_prun.artefact import Record
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.files import append_line
from mi_prun.process_group import ProcessGroup, local_addresses_direct

ANSWER_TOKENS = 256  # of a generated answer, as lm-eval has it where a task does not say


class Spec(Record):
    """What the process is asked. tokenizer: a model folder. context_tokens: prompt and answer together."""

    url: str
    model: str
    tokenizer: str
    context_tokens: int
    concurrency: int
    tasks: tuple[str, ...]
    tasks_from: str | None
    limit: int | None


def check_installed() -> None:
    """Refuse to begin without lm-eval. Raises UserError."""
    if find_spec("lm_eval") is None:
        raise UserError("tasks need lm-eval: pip install 'lm-eval[api]'")


def scores(endpoint: Endpoint, spec: Spec, alive: Callable[[], None] = lambda: None) -> Iterator[TaskScore]:
    """Yield each task's score as soon as it is there.

    `alive` is called while waiting; it may raise to give up. Raises UserError where the process fails.
    """
    with TemporaryDirectory(prefix="mi-prun-tasks-") as folder:
        asked, out, log = Path(folder) / "spec.json", Path(folder) / "out.jsonl", Path(folder) / "harness.log"
        asked.write_text(spec.model_dump_json())
        out.touch()
        command = [sys.executable, "-P", "-m", "bench.tasks.harness", str(asked), str(out)]
        with ProcessGroup(command, log, {"TOKENIZERS_PARALLELISM": "false", **local_addresses_direct()}) as group:
            seen = 0
            while True:
                status = group.process.poll()
                lines = out.read_text().splitlines()
                for line in lines[seen:]:
                    yield TaskScore.model_validate_json(line)
                seen = len(lines)
                if status is not None:
                    break
                alive()
                time.sleep(0.2)
            if status:
                said = group.last_lines()
                if said.startswith("error: "):
                    raise UserError(said.removeprefix("error: "))
                raise UserError(f"task {spec.tasks[min(seen, len(spec.tasks) - 1)]} on {endpoint.url}: {said}")


def evaluate(spec: Spec, out: Path) -> None:
    """Run every task in turn, in this process, and append its score to `out`."""
    import lm_eval
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    from mi_prun.text.calibration import begins_with_bos

    class Served(LocalCompletionsAPI):  # type: ignore[misc]
        def _create_payload(self, messages: Any, generate: bool = False, **options: Any) -> dict[str, Any]:
            """Ask for tokens by their ids: two tokens that read alike would be one entry of `top_logprobs`."""
            payload: dict[str, Any] = super()._create_payload(messages, generate, **options)
            return payload if generate else {**payload, "return_tokens_as_token_ids": True}

    bos = begins_with_bos(AutoTokenizer.from_pretrained(spec.tokenizer, trust_remote_code=False))
    model = Served(
        base_url=f"{spec.url}/v1/completions",
        model=spec.model,
        tokenizer=spec.tokenizer,
        tokenizer_backend="huggingface",
        max_length=spec.context_tokens,
        add_bos_token=bos,
        num_concurrent=spec.concurrency,
        timeout=int(TIMEOUT_S),
    )
    library = Path(lm_eval.__file__).parent / "tasks"
    for name in spec.tasks:
        task = TASKS[name]
        with TemporaryDirectory(prefix="mi-prun-task-") as folder:
            source = prepare(task, Path(folder), library, spec.tasks_from)
            try:
                manager = TaskManager(include_path=[folder], include_defaults=False)
                evaluated = lm_eval.simple_evaluate(
                    model=model, tasks=[name], task_manager=manager, limit=spec.limit, bootstrap_iters=0
                )
            except (ConnectionError, FileNotFoundError) as error:
                raise UserError(
                    f"task {name}: its data set cannot be had from the hub ({str(error).splitlines()[0]}); "
                    "give local files with --tasks-from"
                ) from error
        append_line(out, score_of(task, source, evaluated, model).model_dump_json())


def prepare(task: Task, folder: Path, library: Path, tasks_from: str | None) -> str:
    """Write the configuration into `folder`, and the items where they are local; return where the items come from."""
    items = None
    if tasks_from is not None:
        items = folder / f"{task.name}.jsonl"
        items.write_text("".join(json.dumps(row) + "\n" for row in local_rows(task, Path(tasks_from))))
    if (library / task.config).is_dir():  # a group: its members' files are taken as they are
        for path in (library / task.config).iterdir():
            if path.is_file():
                (folder / path.name).symlink_to(path)
        return "hub"
    settings = configuration(task, library, items)
    if items is not None:
        settings["dataset_kwargs"]["cache_dir"] = str(folder / "cache")
    (folder / f"{task.name}.yaml").write_text(json.dumps(settings))  # JSON is YAML too
    return str(task.file) if items is not None else "hub"


def score_of(task: Task, source: str, evaluated: dict[str, Any], model: Any) -> TaskScore:
    """Make a score of what lm-eval returns: `samples` of each subtask, and its own means in `results`."""
    parts = sorted(evaluated["samples"])
    samples = [
        sample
        for part in parts
        for sample in sorted(evaluated["samples"][part], key=lambda sample: int(sample["doc_id"]))
    ]
    digest = hashlib.sha256()
    own = [sample for sample in samples if sample["filter"] == task.filter]
    for sample in own:
        digest.update(json.dumps([sample["arguments"], str(sample["target"])]).encode())
    correct: dict[str, str] = {}
    means: dict[str, float] = {}
    for filter_name in dict.fromkeys(sample["filter"] for sample in samples):
        chosen = [sample for sample in samples if sample["filter"] == filter_name]
        for metric in chosen[0]["metrics"]:
            name = metric if filter_name == task.filter else f"{metric}, {filter_name}"
            values = [sample[metric] for sample in chosen]
            if all(isinstance(value, int | float) and value in (0, 1) for value in values):
                correct[name] = packed([bool(value) for value in values])
                means[name] = sum(values) / len(values)
            elif len(parts) == 1:
                means[name] = float(evaluated["results"][parts[0]][f"{metric},{filter_name}"])
    return TaskScore(
        task=task.name,
        source=source,
        fewshot=int(evaluated["n-shot"][parts[0]]),
        metric=task.metric,
        scores=means,
        correct=correct,
        items=len(own),
        items_sha256=digest.hexdigest(),
        truncated_items=sum(_is_truncated(sample["arguments"], model) for sample in own),
    )


def _is_truncated(arguments: Sequence[Any], model: Any) -> bool:
    """Tell whether one of an item's requests is longer than the model can be given. Its beginning is then cut off."""

    def too_long(context: str, rest: Any) -> bool:
        if isinstance(rest, str):
            return len(model.tok_encode(context + rest)) > int(model.max_length)
        return len(model.tok_encode(context)) > int(model.max_length) - int(rest.get("max_gen_toks", ANSWER_TOKENS))

    return any(too_long(*pair) for pair in arguments)


def main() -> None:
    """Run the tasks of a spec, as the module's docstring says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("out", type=Path)
    own = parser.parse_args()
    sys.exit(run_command(lambda: evaluate(Spec.model_validate_json(own.spec.read_text()), own.out)))


if __name__ == "__main__":
    main()
