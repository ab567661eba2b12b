"""The `mi-prun` command as a user meets it: the way from a model to a checkpoint, and one line about what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mi_prun.console import run_command
from mi_prun.model import loading
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan
from mi_prun.planning import draft_choice
from mi_prun.planning.draft_choice import Acceptance, StepCost, best_tokens

Run = Callable[..., tuple[int, str, str]]


def test_options_are_looked_at_before_a_model_is_fetched(run: Run, harbour: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    status, _, err = run("apply", "no/such-model", tmp_path / "no-plan.json", "-o", tmp_path / "there")
    assert status == 2
    assert "exists" in err or "is there" in err
    status, _, err = run(
        "apply", "no/such-model", tmp_path / "no.json", "-o", tmp_path / "new", "--max-shard-size", "5X"
    )
    assert status == 2
    assert "--max-shard-size" in err


def test_a_full_accelerator_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fill() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    assert run_command(fill) == 2
    assert capsys.readouterr().err == (
        "error: the accelerator's memory is full (CUDA out of memory. Tried to allocate 2 GiB.); "
        "take a shorter --window, or --device cpu\n"
    )


def test_a_model_that_has_moved_is_asked_for(run: Run, reference: Path, harbour: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(reference, tmp_path / "model"))
    options = ["--calibration", harbour, "--tokens", 128, "--window", 64]
    assert run("analyze", model, "-o", tmp_path / "analysis", *options)[0] == 0
    model.rename(tmp_path / "moved")
    words = ("plan", tmp_path / "analysis", "--ratio", 0.25, "--method", "bi", "--rerank", 0, "-o", tmp_path / "p.json")
    status, _, err = run(*words)
    assert status == 2
    assert err.count("\n") == 1
    assert err.endswith("The analysis was made of it; say where it is now with --model\n")
    assert run(*words, "--model", tmp_path / "moved")[0] == 0


def test_from_a_model_to_a_checkpoint(
    run: Run, reference: Path, harbour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis, plan, pruned = tmp_path / "analysis", tmp_path / "plan.json", tmp_path / "pruned"
    text = ["--calibration", harbour, "--tokens", 128, "--window", 64]
    status, out, err = run("analyze", reference, "-o", analysis, *text)
    assert (status, err) == (0, "")
    assert "harbour.txt" in out
    status, out, _ = run("plan", analysis, "--ratio", 0.25, "-o", plan, "--rerank", 4)
    assert status == 0
    assert "3 of 12 blocks (25.0%)" in out
    assert "nats, Fast-Block-Select's " in out
    assert "KL(dense || pruned)" in out
    assert len(Plan.read(plan).dropped) == 3
    status, out, _ = run("apply", reference, plan, "-o", pruned)
    assert status == 0
    assert json.loads((pruned / "config.json").read_text())["num_hidden_layers"] == 9
    status, out, _ = run("inspect", pruned, "--verify")
    assert status == 0
    assert "verified" in out
    one_step, loads, load = tmp_path / "one-step", [], loading.load_tensors
    monkeypatch.setattr(loading, "load_tensors", lambda *words, **more: loads.append(words) or load(*words, **more))
    assert run("prune", reference, "--ratio", 0.25, "-o", one_step, "--rerank", 4, *text)[0] == 0
    assert len(loads) == 1
    assert (one_step / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("option", "dropped"),
    [(["--num-blocks", "2"], 2), (["--param-ratio", "0.2"], 2), (["--drop", "5,6,9"], 3), (["--drop", "2-4"], 3)],
)
def test_each_way_to_say_how_much(
    run: Run, reference_analysis_folder: Path, tmp_path: Path, option: list[str], dropped: int
) -> None:
    rerank = [] if "--drop" in option else ["--rerank", "0"]
    words = [reference_analysis_folder, *option, "-o", tmp_path / "plan.json", *rerank, "--no-quality"]
    status, _, err = run("plan", *words)
    assert (status, err) == (0, "")
    assert len(Plan.read(tmp_path / "plan.json").dropped) == dropped


@pytest.mark.parametrize(("accepted", "pays"), [(0.9, True), (0.1, False)])
def test_a_plan_for_a_draft_is_written_if_one_pays(
    run: Run,
    reference_analysis_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accepted: float,
    pays: bool,
) -> None:
    """What was found of each ratio is said in either case."""
    monkeypatch.setattr(
        draft_choice, "measure_acceptance", lambda evaluator, sets: [Acceptance(accepted, accepted)] * len(sets)
    )
    monkeypatch.setattr(draft_choice, "measure_step_cost", lambda model: StepCost((1.0,) * 12, 1.0))
    output = tmp_path / "plan.json"
    words = [reference_analysis_folder, "--for", "draft", "--rerank", "0", "--no-quality", "-o", output]
    status, out, err = run("plan", *words)
    assert [line.partition(" ")[0] for line in out.splitlines() if "blocks dropped: accepts" in line] == [
        "6",
        "5",
        "3",
        "2",
    ]
    if pays:
        assert (status, err) == (0, "")
        plan = Plan.read(output)
        assert len(plan.dropped) == 6
        assert plan.settings["draft_tokens"] == best_tokens(accepted, 7 / 13)
    else:
        assert status == 2
        assert err.startswith("error: no draft pays: the best, 6 of 12 blocks dropped")
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option",
    [
        ["--ratio", "0"],
        ["--ratio", "1"],
        ["--ratio", "1.5"],
        ["--ratio", "nan"],
        ["--ratio", "0.01"],  # rounds to no block
        ["--ratio", "0.99"],  # rounds to all
        ["--ratio", "much"],
        ["--num-blocks", "12"],
        ["--param-ratio", "0.001"],
        ["--drop", "12"],
        ["--drop", "3,3"],
        ["--drop", "a"],
        ["--ratio", "0.25", "--num-blocks", "3"],
        [],
        ["--ratio", "0.25", "--max-shard-size", "0"],
        ["--ratio", "0.25", "--max-shard-size", "5"],
        ["--ratio", "0.25", "--heal", "10"],
        ["--ratio", "0.25", "--max-shard-size", "5GB", "--virtual"],
        ["--ratio", "0.25", "--calibration", "gone.txt"],
        ["--ratio", "0.25", "--calibration", "neither:a:set"],
        ["--ratio", "0.25", "--calibration", "EMPTY"],
        ["--ratio", "0.25", "--tokens", "0"],
        ["--ratio", "0.25", "--method", "magic"],
        ["--ratio", "0.25", "--device", "abacus"],
        ["--ratio", "0.25", "--rerank", "-1"],
        ["--ratio", "0.25", "--seed", "-1"],
        ["--colour", "red"],
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    run: Run, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    monkeypatch.setattr("mi_prun.analysis.analyze.collect_whole", lambda *a, **k: pytest.fail("the pass was made"))
    (tmp_path / "empty.txt").write_text("")
    words = [str(tmp_path / "empty.txt") if word == "EMPTY" else word for word in option]
    status, out, err = run("prune", reference, "-o", tmp_path / "out", *words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_models_that_will_not_do_are_refused(
    run: Run, reference: Path, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tiny("llama", folder="other")
    unsupported = tmp_path / "unsupported"
    unsupported.mkdir()
    (unsupported / "config.json").write_text(json.dumps({"model_type": "mamba", "num_hidden_layers": 4}))
    for model in (tmp_path / "nowhere", empty, unsupported):
        status, out, err = run("prune", model, "--ratio", 0.25, "-o", tmp_path / "out")
        assert (status, out, err.count("\n")) == (2, "", 1), err
    assert run("prune", reference, "--drop", "1", "-o", other)[0] == 2  # it is not empty
    assert not (tmp_path / "out").exists()


def test_a_plan_for_another_model_is_refused(
    run: Run, reference_analysis_folder: Path, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    assert run("plan", reference_analysis_folder, "--drop", "1", "--no-quality", "-o", plan)[0] == 0
    status, out, err = run("apply", tiny("llama", num_hidden_layers=12), plan, "-o", tmp_path / "out")
    assert (status, out) == (2, "")
    assert "is another model" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("choice", [["--method", "bi", "--ratio", "0.25"], ["--drop", "1"]])
def test_an_analysis_and_a_model_that_do_not_belong_together_are_refused(
    run: Run, reference_analysis_folder: Path, tiny: Callable[..., Path], tmp_path: Path, choice: list[str]
) -> None:
    """Also where the model is not needed."""
    words = [*choice, "--no-quality", "-o", tmp_path / "plan.json"]
    other = tiny("llama", num_hidden_layers=12)
    status, out, err = run("plan", reference_analysis_folder, "--model", other, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "is another model" in err
    assert not (tmp_path / "plan.json").exists()
    assert run("plan", reference_analysis_folder, *words)[0] == 0


def test_a_plan_with_nothing_dropped_gives_the_tensors_of_the_source(
    run: Run, reference: Path, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    make_plan(reference, ()).write(tmp_path / "plan.json")
    status, out, err = run(
        "apply", reference, tmp_path / "plan.json", "-o", tmp_path / "same", "--max-shard-size", "5MB"
    )
    assert (status, err) == (0, ""), out
    dense, same = open_model(reference), open_model(tmp_path / "same")
    assert len(same.shards) > 1
    assert dense.tensors.keys() == same.tensors.keys()
    for name, (source, was) in dense.tensors.items():
        path, info = same.tensors[name]
        assert (info.dtype, info.shape) == (was.dtype, was.shape)
        assert path.read_bytes()[info.begin : info.end] == source.read_bytes()[was.begin : was.end]
    assert {key: value for key, value in same.config.items() if key != "mi_prun"} == dense.config


@pytest.mark.parametrize("command", ["analyze", "plan", "apply", "prune", "inspect"])
def test_help_shows_an_example(run: Run, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"Example: mi-prun {command}" in out


def test_methods_are_listed(run: Run) -> None:
    status, out, _ = run("methods")
    assert status == 0
    assert {"mi-prun", "bi", "greedy-loss", "exhaustive"} <= {line.split()[0] for line in out.splitlines()}
