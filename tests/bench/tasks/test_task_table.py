"""Tasks from local files: the model is given the very text that lm-eval's own task gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.tasks.harness import prepare
from bench.tasks.task_table import DEFAULT, TASKS, ZEROSHOT, Task, check_local, chosen_tasks, local_rows, parse_tasks
from mi_prun.errors import UserError

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "zeroshot"

# One item of each form, and what must be asked: (context, continuation) of every choice, the right one's index.
ITEMS: dict[str, tuple[dict[str, Any], list[tuple[str, str]], Any]] = {
    "arc_easy": (
        {"query": "Question: What melts?", "choices": ["Ice", "Fire"], "gold": 0},
        [("Question: What melts?\nAnswer:", " Ice"), ("Question: What melts?\nAnswer:", " Fire")],
        0,
    ),
    "arc_challenge": (
        {"query": "Question: What burns?", "choices": ["Ice", "Wood", "Sand"], "gold": 1},
        [("Question: What burns?\nAnswer:", f" {word}") for word in ("Ice", "Wood", "Sand")],
        1,
    ),
    "boolq": (
        {"query": "Passage: Ice melts.\nQuestion: does ice melt?", "choices": ["no", "yes"], "gold": 1},
        [("Ice melts.\nQuestion: does ice melt?\nAnswer:", f" {word}") for word in ("no", "yes")],
        1,
    ),
    "hellaswag": (
        {"query": "Cooking: She takes", "choices": ["a pan.", "a cloud."], "gold": 0},
        [("Cooking: She takes", " a pan."), ("Cooking: She takes", " a cloud.")],
        0,
    ),
    "openbookqa": (
        {"query": "Fog is likely around", "choices": ["a marsh", "a desert"], "gold": 0},
        [("Fog is likely around", " a marsh"), ("Fog is likely around", " a desert")],
        0,
    ),
    "piqa": (
        {"query": "Question: Open a jar.\n", "choices": ["Turn the lid.", "Turn the jar\ninside out."], "gold": 0},
        [("Question: Open a jar.\nAnswer:", f" Turn the {rest}") for rest in ("lid.", "jar\ninside out.")],
        0,
    ),
    "winogrande": (
        {"context_options": ["Ann beat Eve so Ann", "Ann beat Eve so Eve"], "continuation": "won it.", "gold": 0},
        [("Ann beat Eve so Ann", " won it."), ("Ann beat Eve so Eve", " won it.")],
        0,
    ),
    "lambada_openai": (
        {"context": "He said yes, and she\nsaid", "continuation": "no"},
        [("He said yes, and she\nsaid", " no")],
        " no",
    ),
    "capitals": (
        {"query": "The capital of France is the city of", "choices": ["Rome", "Paris"], "gold": 1},
        [("The capital of France is the city of", f" {city}") for city in ("Rome", "Paris")],
        1,
    ),
    "agreement": (
        {"query": "The keys near the cabinet", "choices": ["are", "is"], "gold": 0},
        [("The keys near the cabinet", " are"), ("The keys near the cabinet", " is")],
        0,
    ),
}  # fmt: skip


def write(folder: Path, task: Task, rows: list[dict[str, Any]]) -> None:
    assert task.file is not None
    (folder / task.file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def loaded(task: Task, folder: Path, source: Path) -> Any:
    """lm-eval's task object over the local items."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder.mkdir()
    assert prepare(task, folder, Path(lm_eval.__file__).parent / "tasks", str(source)) == task.file
    result = TaskManager(include_path=[str(folder)], include_defaults=False).load([task.name])["tasks"][task.name]
    result.set_fewshot_seed(seed=1234)
    return result


@pytest.mark.parametrize("name", list(ITEMS))
def test_the_text_is_lm_evals_own(tmp_path: Path, name: str) -> None:
    pytest.importorskip("lm_eval")
    row, asked, right = ITEMS[name]
    write(tmp_path, TASKS[name], [row, row])
    result = loaded(TASKS[name], tmp_path / "task", tmp_path)
    result.set_config(key="num_fewshot", value=0)
    result.build_all_requests(limit=1, rank=0, world_size=1)
    assert [instance.args for instance in result.instances] == asked
    assert result.doc_to_target(result.eval_docs[0]) == (f"{row['continuation']}" if name == "winogrande" else right)
    assert TASKS[name].metric in result._metric_fn_list


def test_gsm8k_draws_its_examples_from_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [
        {"context": f"How much is {n} and {n}?", "chain_of_thought": f"{n} + {n} = {2 * n}", "answer": str(2 * n)}
        for n in range(1, 9)
    ]
    write(tmp_path, TASKS["gsm8k"], rows)
    result = loaded(TASKS["gsm8k"], tmp_path / "task", tmp_path)
    result.build_all_requests(limit=2, rank=0, world_size=1)
    for number, instance in enumerate(result.instances, 1):
        prompt, settings = instance.args
        assert prompt.endswith(f"\n\nQuestion: How much is {number} and {number}?\nAnswer:")
        assert prompt.count("Question:") == 6
        assert prompt.count(f"How much is {number} and {number}?") == 1  # the item itself is no example
        assert "Question:" in settings["until"]
    assert result.process_results(result.eval_docs[0], ["2"])["exact_match"] == 1
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    with pytest.raises(UserError, match="has 6 items; gsm8k draws its examples from them and needs 7"):
        check_local([TASKS["gsm8k"]], tmp_path)


def test_names() -> None:
    assert [task.name for task in parse_tasks("boolq, arc_easy")] == ["boolq", "arc_easy"]
    assert len(parse_tasks(ZEROSHOT)) == 7
    with pytest.raises(UserError, match=r"there is no task 'nope'; the known ones are arc_easy, .*mmlu"):
        parse_tasks("boolq,nope")
    with pytest.raises(UserError, match="names a task twice"):
        parse_tasks("boolq,boolq")
    with pytest.raises(UserError, match="names no task"):
        parse_tasks(" ,")


def test_the_default_takes_what_a_folder_has(tmp_path: Path) -> None:
    assert chosen_tasks(DEFAULT, None) == (parse_tasks(ZEROSHOT), [])
    assert chosen_tasks("gsm8k", tmp_path) == (parse_tasks("gsm8k"), [])  # as named; refused where it is not there
    with pytest.raises(UserError, match=r"has none of boolq\.jsonl, piqa\.jsonl"):
        chosen_tasks(DEFAULT, tmp_path)
    for name in ("arc_easy", "openbookqa", "lambada_openai"):
        write(tmp_path, TASKS[name], [ITEMS[name][0]])
    chosen, missing = chosen_tasks(DEFAULT, tmp_path)
    assert [task.name for task in chosen] == ["arc_easy", "openbookqa"]
    assert missing == ["boolq.jsonl", "piqa.jsonl", "hellaswag.jsonl", "winogrande.jsonl", "arc_challenge.jsonl"]
    check_local(chosen, tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("arc_easy", {"choices": ["a"], "gold": 0}, "field 'query' is missing"),
        ("arc_easy", {"query": "What?", "choices": ["a"], "gold": 0}, "query does not begin with 'Question: '"),
        ("arc_easy", {"query": "Question: What?", "choices": ["a"], "gold": 1}, "gold 1 is not the index of one of 1"),
        ("arc_easy", {"query": "Question: What?", "choices": ["a"], "gold": True}, "gold True is not the index"),
        ("arc_easy", {"query": "Question: What?", "choices": "ab", "gold": 0}, "choices is not a list of strings"),
        ("boolq", {"query": "Passage: a", "choices": ["no", "yes"], "gold": 0}, "query does not end with"),
        ("boolq", {"query": "Passage: a", "choices": ["yes", "no"], "gold": 0}, "not no and yes"),
        ("lambada_openai", {"context": "a", "continuation": "two words"}, "is not one word"),
        ("winogrande", {"context_options": ["a"], "continuation": "b", "gold": 0}, "not enough values"),
        ("winogrande", {"context_options": ["a", "b"], "continuation": "b", "gold": 2}, "gold 2 is neither 0 nor 1"),
    ],
)
def test_a_row_that_is_no_item_is_named_with_its_line(
    tmp_path: Path, name: str, row: dict[str, Any], said: str
) -> None:
    write(tmp_path, TASKS[name], [ITEMS[name][0], row])
    with pytest.raises(UserError, match=f"line 2 is no item of {name}: .*{said}"):
        local_rows(TASKS[name], tmp_path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, TASKS["boolq"], [ITEMS["boolq"][0]])
    with pytest.raises(UserError, match=r"has no piqa\.jsonl for task piqa; it has: boolq"):
        check_local([TASKS["piqa"]], tmp_path)
    with pytest.raises(UserError, match="task mmlu has no local form"):
        check_local([TASKS["mmlu"]], tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check_local([TASKS["piqa"]], tmp_path / "absent")
    (tmp_path / "piqa.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"piqa\.jsonl, line 1 is no item of piqa"):
        check_local([TASKS["piqa"]], tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sets are outside the repository")
def test_every_item_of_the_real_sets_is_understood() -> None:
    assert chosen_tasks(DEFAULT, SHARED)[1] == ["hellaswag.jsonl"]
    there = [task for task in TASKS.values() if task.file and (SHARED / task.file).is_file()]
    assert len(there) >= 8
    assert min(len(local_rows(task, SHARED)) for task in there) >= 500
