"""List the tasks that the bench knows, as data: lm-eval's configuration, the metric, and the local file of each.

A task is lm-eval's own configuration, prompts and metrics included. From a local folder only the place of its items
differs. The rows of a JSON lines file (the form of mosaicml/llm-foundry's `scripts/eval/local_data`) are turned into
the columns that lm-eval's prompt template asks for, so that a model sees the same text either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mi_prun.errors import UserError
from mi_prun.text.row_text import NotTextError, plain_text
from mi_prun.text.text_source import json_rows

TaskItem = dict[str, Any]
LETTERS = "ABCDEFGH"
OWN = Path(__file__).parent / "own"
OWN_FEWSHOT_LEAST = 7  # five examples, the item itself, and one to draw


@dataclass(frozen=True)
class Task:
    """A task of lm-eval's.

    config: a file of `lm_eval/tasks`; its folder for a group. metric: 0 or 1 for an item; models are compared by it.
    filter: of a generated answer, as lm-eval names it. split: what lm-eval scores.

    file, columns: of the local form; None where there is none. own_fewshot: examples are drawn from the file itself,
    without the item that is asked; on the hub they come from the training split.
    """

    name: str
    config: str
    metric: str
    split: str
    file: str | None = None
    columns: Callable[[TaskItem], TaskItem] | None = None
    filter: str = "none"
    overrides: tuple[tuple[str, Any], ...] = ()
    own_fewshot: bool = False
    min_context: int = 0


def _text(row: Mapping[str, Any], name: str) -> str:
    """Return a field that is text. Nothing becomes text by `str()`: a null would be asked as "None"."""
    return _plain(row[name], name)


def _plain(value: object, name: str) -> str:
    try:
        return plain_text(value)
    except NotTextError as error:
        raise ValueError(f"field {name!r} {error}") from error


def _choices(row: TaskItem) -> tuple[list[str], int]:
    choices, gold = row["choices"], row["gold"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise TypeError("choices is not a list of strings")
    choices = [_plain(choice, "choices") for choice in choices]
    if type(gold) is not int or not 0 <= gold < len(choices) <= len(LETTERS):
        raise ValueError(f"gold {gold!r} is not the index of one of {len(choices)} choices")
    return choices, gold


def _question(row: TaskItem, prefix: str = "Question: ") -> str:
    """Return a row's question without the word that the template writes itself."""
    query = _text(row, "query")
    if not query.startswith(prefix):
        raise ValueError(f"query does not begin with {prefix!r}")
    return query.removeprefix(prefix).removesuffix("\n")


def _letters(row: TaskItem) -> TaskItem:
    choices, gold = _choices(row)
    return {"choices": {"text": choices, "label": list(LETTERS[: len(choices)])}, "answerKey": LETTERS[gold]}


def arc(row: TaskItem) -> TaskItem:
    """Turn a row into ARC's columns."""
    return {"question": _question(row), **_letters(row)}


def openbookqa(row: TaskItem) -> TaskItem:
    """Turn a row into OpenBookQA's columns."""
    return {"question_stem": _text(row, "query"), **_letters(row)}


def piqa(row: TaskItem) -> TaskItem:
    """Turn a row into PIQA's columns."""
    choices, gold = _choices(row)
    first, second = choices
    return {"goal": _question(row), "sol1": first, "sol2": second, "label": gold}


def boolq(row: TaskItem) -> TaskItem:
    """Turn a row into BoolQ's columns."""
    choices, gold = _choices(row)
    if choices != ["no", "yes"]:
        raise ValueError(f"choices are {choices}, not no and yes")
    passage, mark, question = _question(row, "Passage: ").rpartition("\nQuestion: ")
    if not mark or not question.endswith("?"):
        raise ValueError("query does not end with '\\nQuestion: ...?'")
    return {"passage": passage, "question": question.removesuffix("?"), "label": gold}


def hellaswag(row: TaskItem) -> TaskItem:
    """Turn a row into HellaSwag's columns."""
    choices, gold = _choices(row)
    return {"query": _text(row, "query"), "choices": choices, "label": gold}


def winogrande(row: TaskItem) -> TaskItem:
    """Turn a row into WinoGrande's columns. The sentence begins with its gap: what lies before it is the same in both
    options.
    """
    first, second = (_plain(option, "context_options") for option in row["context_options"])
    if type(row["gold"]) is not int or row["gold"] not in (0, 1):
        raise ValueError(f"gold {row['gold']!r} is neither 0 nor 1")
    return {
        "sentence": f"_ {_text(row, 'continuation')}",
        "option1": first,
        "option2": second,
        "answer": str(row["gold"] + 1),
    }


def lambada(row: TaskItem) -> TaskItem:
    """Turn a row into LAMBADA's columns."""
    word = _text(row, "continuation").strip()
    if not word or " " in word:
        raise ValueError(f"continuation {word!r} is not one word")
    return {"text": f"{_text(row, 'context')} {word}"}


def own(row: TaskItem) -> TaskItem:
    """Turn a row of our own items into the columns of their template."""
    choices, gold = _choices(row)
    return {"query": _text(row, "query"), "choices": choices, "label": gold}


def gsm8k(row: TaskItem) -> TaskItem:
    """Turn a row into GSM8K's columns."""
    number = row["answer"]
    answer = str(number) if type(number) is int else _text(row, "answer")
    return {"question": _text(row, "context"), "answer": f"{_text(row, 'chain_of_thought')}\n#### {answer}"}


TASKS = {
    task.name: task
    for task in (
        Task("arc_easy", "arc/arc_easy.yaml", "acc_norm", "test", "arc_easy.jsonl", arc),
        Task("arc_challenge", "arc/arc_challenge.yaml", "acc_norm", "test", "arc_challenge.jsonl", arc),
        Task("boolq", "super_glue/boolq/default.yaml", "acc", "validation", "boolq.jsonl", boolq),
        Task(
            "hellaswag",
            "hellaswag/hellaswag.yaml",
            "acc_norm",
            "validation",
            "hellaswag.jsonl",
            hellaswag,
            overrides=(("process_docs", None),),  # a local row is what that function makes
        ),
        Task("openbookqa", "openbookqa/openbookqa.yaml", "acc_norm", "test", "openbook_qa.jsonl", openbookqa),
        Task("piqa", "piqa/piqa.yaml", "acc_norm", "validation", "piqa.jsonl", piqa),
        Task("winogrande", "winogrande/default.yaml", "acc", "validation", "winogrande.jsonl", winogrande),
        Task("lambada_openai", "lambada/lambada_openai.yaml", "acc", "test", "lambada_openai.jsonl", lambada),
        Task(
            "gsm8k",
            "gsm8k/gsm8k.yaml",
            "exact_match",
            "test",
            "gsm8k.jsonl",
            gsm8k,
            filter="strict-match",
            own_fewshot=True,
            min_context=512,  # of which an answer takes 256
        ),
        # Ours (own_items): they can be asked where no data set can be had.
        Task("capitals", str(OWN / "capitals.yaml"), "acc", "test", "capitals.jsonl", own),
        Task("agreement", str(OWN / "agreement.yaml"), "acc", "test", "agreement.jsonl", own),
        Task("mmlu", "mmlu/default", "acc", "test"),
    )
}


# The seven that papers on pruning report.
ZEROSHOT = "boolq,piqa,hellaswag,winogrande,arc_easy,arc_challenge,openbookqa"
DEFAULT = "default"


def chosen_tasks(text: str, folder: Path | None) -> tuple[list[Task], list[str]]:
    """Return the tasks that are named, and the files that the folder lacks.

    `default` takes those of the seven whose items the folder has. Raises UserError for an unknown name.
    """
    if text != DEFAULT:
        return parse_tasks(text), []
    seven = parse_tasks(ZEROSHOT)
    if folder is None or not folder.is_dir():
        return seven, []
    files = {task.name: folder / str(task.file) for task in seven}
    missing = [path.name for path in files.values() if not path.is_file()]
    if len(missing) == len(seven):
        raise UserError(f"--tasks-from {folder} has none of {', '.join(missing)}")
    return [task for task in seven if files[task.name].is_file()], missing


def parse_tasks(text: str) -> list[Task]:
    """Parse `arc_easy,boolq`. Raises UserError for an unknown task, and for one that is named twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in TASKS]:
        raise UserError(f"--tasks {text!r}: there is no task {unknown[0]!r}; the known ones are {', '.join(TASKS)}")
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"--tasks {text!r} names {'a task twice' if names else 'no task'}; write it like arc_easy,boolq"
        )
    return [TASKS[name] for name in names]


def local_rows(task: Task, folder: Path) -> list[TaskItem]:
    """Read the items of a task's local file, in lm-eval's columns. Raises UserError with the line that will not do."""
    if task.file is None or task.columns is None:
        raise UserError(f"task {task.name} has no local form; leave out --tasks-from to take it from the hub")
    path = folder / task.file
    if not path.is_file():
        there = ", ".join(name for name, other in TASKS.items() if other.file and (folder / other.file).is_file())
        raise UserError(f"--tasks-from {folder} has no {task.file} for task {task.name}; it has: {there or 'none'}")
    rows = []
    for place, row in json_rows(path, str(path)):
        try:
            rows.append(task.columns(dict(row)))
        except (KeyError, TypeError, ValueError) as error:
            said = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}, {place} is no item of {task.name}: {said}") from error
    if not rows:
        raise UserError(f"{path} has no items of {task.name}")
    if task.own_fewshot and len(rows) < OWN_FEWSHOT_LEAST:
        raise UserError(
            f"{path} has {len(rows)} items; {task.name} draws its examples from them and needs {OWN_FEWSHOT_LEAST}"
        )
    return rows


def configuration(task: Task, lm_eval_tasks: Path, rows_file: Path | None) -> TaskItem:
    """Return what lm-eval is given: its own task, with the items in `rows_file` where they are local."""
    if rows_file is None:
        return {"include": str(lm_eval_tasks / task.config), "task": task.name}
    splits = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"))
    return {
        "include": str(lm_eval_tasks / task.config),
        "task": task.name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {task.split: str(rows_file)}},
        **splits,
        f"{task.split}_split": task.split,
        **({"fewshot_split": task.split} if task.own_fewshot else {}),
        **dict(task.overrides),
    }


def check_on_hub(tasks: Sequence[Task]) -> None:
    """Refuse tasks whose items no hub has. Raises UserError."""
    if task := next((task for task in tasks if Path(task.config).parent == OWN), None):
        raise UserError(f"--tasks {task.name} is on no hub; name the folder that holds {task.file} with --tasks-from")


def check_local(tasks: Sequence[Task], folder: Path) -> None:
    """Check that every file is there and that every row is an item, before anything is started. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"--tasks-from {folder}: no such folder")
    for task in tasks:
        local_rows(task, folder)
