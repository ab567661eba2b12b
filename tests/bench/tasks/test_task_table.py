"""Tasks from local files: the model is given the very text that lm-eval's own task gives it."""

from __future__ import annotations

import codecs
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
    with pytest.raises(UserError, match=r"piqa\.jsonl cannot be read: line 1 is not JSON"):
        check_local([TASKS["piqa"]], tmp_path)
    (tmp_path / "piqa.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match=r"piqa\.jsonl has no items of piqa"):
        check_local([TASKS["piqa"]], tmp_path)


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["", "\n \n\n"])
def test_items_are_read_as_any_other_rows_are(tmp_path: Path, line_break: str, mark: bytes, end: str) -> None:
    """A byte order mark, line breaks of three kinds and blank lines are no items."""
    lines = "".join(json.dumps(ITEMS["piqa"][0]) + "\n" for _ in range(3)) + end
    (tmp_path / "piqa.jsonl").write_bytes(mark + lines.replace("\n", line_break).encode())
    assert len(local_rows(TASKS["piqa"], tmp_path)) == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1"])
def test_items_in_another_encoding_are_refused_with_the_way_out(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "openbook_qa.jsonl").write_bytes('{"query": "café"}\n'.encode(encoding))
    with pytest.raises(UserError, match=r"cannot be read: line 1 is not JSON|cannot be read as UTF-8 text: .*iconv"):
        local_rows(TASKS["openbookqa"], tmp_path)


TEXTS = {
    "arc_easy": ("query",),
    "openbookqa": ("query",),
    "hellaswag": ("query",),
    "winogrande": ("continuation",),
    "lambada_openai": ("context", "continuation"),
    "capitals": ("query",),
}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in TEXTS.items() for field in fields])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "holds null or missing, not text"),
        (7, "holds a number, not text"),
        (["a"], "holds a list, not text"),
        ({"a": "b"}, "holds an object, not text"),
        ("ship \ud83d", "is no valid Unicode: character 6"),
    ],
)
def test_what_is_no_text_is_not_asked_as_text(tmp_path: Path, name: str, field: str, value: Any, said: str) -> None:
    """A null would be asked as "None", a list as Python writes it."""
    write(tmp_path, TASKS[name], [ITEMS[name][0], ITEMS[name][0] | {field: value}])
    with pytest.raises(UserError, match=rf"line 2 is no item of {name}: field '{field}' {said}"):
        local_rows(TASKS[name], tmp_path)


@pytest.mark.parametrize(("name", "field"), [("winogrande", "context_options"), ("hellaswag", "choices")])
def test_half_a_surrogate_pair_in_a_choice_is_refused(tmp_path: Path, name: str, field: str) -> None:
    write(tmp_path, TASKS[name], [ITEMS[name][0] | {field: ["a", "ship \ud83d"]}])
    with pytest.raises(UserError, match=rf"line 1 is no item of {name}: field '{field}' is no valid Unicode"):
        local_rows(TASKS[name], tmp_path)


def test_gsm8ks_answer_may_be_a_number(tmp_path: Path) -> None:
    row = {"context": "How much is 1 and 1?", "chain_of_thought": "1 + 1 = 2", "answer": 2}
    write(tmp_path, TASKS["gsm8k"], [row] * 7)
    assert local_rows(TASKS["gsm8k"], tmp_path)[0]["answer"] == "1 + 1 = 2\n#### 2"
    write(tmp_path, TASKS["gsm8k"], [row | {"answer": None}] * 7)
    with pytest.raises(UserError, match="line 1 is no item of gsm8k: field 'answer' holds null"):
        local_rows(TASKS["gsm8k"], tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sets are outside the repository")
def test_every_item_of_the_real_sets_is_understood() -> None:
    assert chosen_tasks(DEFAULT, SHARED)[1] == ["hellaswag.jsonl"]
    there = [task for task in TASKS.values() if task.file and (SHARED / task.file).is_file()]
    assert len(there) >= 8
    assert min(len(local_rows(task, SHARED)) for task in there) >= 500
