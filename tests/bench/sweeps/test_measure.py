"""The order of rounds, what is kept of them, and what a sweep that was killed does not measure again.

Engines and load are in the tests' hands here: a kill at a chosen round cannot be had otherwise. `test_bench_engine`
has the real ones.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.engines import fleet, memory_check
from bench.models.measured_model import open_measured_models
from bench.records.journal import results_folder
from bench.records.schema import POINTS_NAME, ROUNDS_NAME, PointRecord, Round, Workload, read_points
from bench.records.task_schema import TASKS_NAME
from bench.settings import MeasureSettings, WorkloadSettings
from bench.sweeps import measure
from bench.sweeps.aggregate import dense_quality, line
from bench.sweeps.measure import prepare
from bench.sweeps.run import run
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.console import run_app
from mi_prun.errors import UserError
from mi_prun.plan.plan import Quality

Prune = Callable[..., Path]
SETTINGS = MeasureSettings(
    WorkloadSettings(input_tokens=16, output_tokens=8, concurrency=(1, 2), rounds=3, warmups=1), alive="together"
)


class Bench:
    """Stands for engines and load. rounds: (model's flags, load, number) in the order asked for; kill_at: a round of
    them at which the process dies. Its nth round is n times as slow as its first, on both models: a drift.
    """

    def __init__(self) -> None:
        self.rounds: list[tuple[str, str, int]] = []
        self.warm_ups: list[str] = []
        self.starts: list[str] = []
        self.alive: list[str] = []
        self.most_alive = 0
        self.kill_at: int | None = None
        self.made: Callable[..., Round] | None = None
        self.drafted = [0, 0, 0]  # drafts, their tokens, those accepted: of the drafting engine since its start

    @contextlib.contextmanager
    def running(self, model: str, flags: Sequence[str] = ()) -> Iterator[Any]:
        name = Path(model).name + (" drafted" if "--draft" in flags else "")
        self.starts.append(name)
        self.alive.append(name)
        self.most_alive = max(self.most_alive, len(self.alive))
        yield SimpleNamespace(
            model=name,
            base_url=f"http://{name}-{len(self.starts)}",
            startup_s=10.0 + len(self.starts),
            load_s=1.0,
            weight_bytes=None,
            kv_tokens=lambda: 4800,
            metrics=self.metrics,
            group=SimpleNamespace(peak_rss_bytes=2**30, processes=list),
        )
        self.alive.remove(name)

    @contextlib.contextmanager
    def load_generator(self, device: Any, trace: Any = None) -> Iterator[Any]:
        yield self

    def metrics(self) -> str:
        names = ("drafts", "draft_tokens", "accepted_tokens")
        return "".join(
            f"# TYPE vllm:spec_decode_num_{name}_total counter\nvllm:spec_decode_num_{name}_total {count}\n"
            for name, count in zip(names, self.drafted, strict=True)
        )

    def draft(self, *counts: int) -> None:
        self.drafted = [before + more for before, more in zip(self.drafted, counts, strict=True)]

    def warm_up(self, engine: Any, load: Workload) -> None:
        self.warm_ups.append(engine.model)
        self.draft(50, 150, 150)

    def round(self, engine: Any, load: Workload, number: int) -> Round:
        if self.kill_at == len(self.rounds):
            raise KeyboardInterrupt
        self.rounds.append((engine.model, load.label, number))
        if engine.model.endswith("drafted"):
            self.draft(2, 6, 3 + number)
        assert self.made is not None
        return self.made((100 if engine.model == "dense" else 125) / (1 + number))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, point: Callable[..., PointRecord]) -> Bench:
    stand_in = Bench()

    def made(rate: float) -> Round:
        one = point().speed.rounds[0]
        slower = {
            name: getattr(one, name).model_copy(update={"p50_ms": 800 / rate})
            for name in ("ttft", "tpot", "itl", "e2e")
        }
        same = dict.fromkeys(("output_tokens_per_s", "total_tokens_per_s", "requests_per_s"), rate)
        return one.model_copy(update=same | slower)

    stand_in.made = made
    monkeypatch.setattr(fleet, "running", stand_in.running)
    monkeypatch.setattr(measure, "load_generator", stand_in.load_generator)
    return stand_in


def measured(dense: Path, pruned: Path, out: Path, settings: MeasureSettings = SETTINGS) -> list[PointRecord]:
    prepared = prepare(open_measured_models(str(dense), [str(pruned)]), settings)
    with results_folder(out) as folder:
        return measure.measure(prepared, folder)


def test_side_by_side_rounds_alternate_and_a_drift_cancels_out(
    bench: Bench, tmp_path: Path, dense: Path, prune: Prune
) -> None:
    points = measured(dense, prune(dense, tmp_path / "p25", [1]), tmp_path / "results")
    order = [(model, number) for model, _, number in bench.rounds]
    turns = (("dense", "p25"), ("p25", "dense"), ("dense", "p25"))
    assert order == 2 * [(model, number) for number, models in enumerate(turns) for model in models]
    assert (bench.starts, bench.most_alive) == (["dense", "p25"], 2)
    assert len(bench.warm_ups) == 4  # each engine before its first round of each load
    assert [(p.load.label, p.arm.kind) for p in points] == [
        ("custom, 1 in flight", "dense"),
        ("custom, 1 in flight", "pruned"),
        ("custom, 2 in flight", "dense"),
        ("custom, 2 in flight", "pruned"),
    ]
    first, second = points[:2]
    assert first.paired is None
    assert first.roofline == ()
    assert second.paired is not None
    assert second.paired.output_tokens_per_s.ratio == pytest.approx(1.25)
    assert second.paired.output_tokens_per_s.low == pytest.approx(1.25)  # each round was slower than the one before
    assert second.paired.ttft.ratio == pytest.approx(1.25)
    assert [roof.phase for roof in second.roofline] == ["prefill", "decode"]
    assert [roof.phase for roof in points[3].roofline] == ["decode"]  # two in flight: prefill is mixed into it
    for roof in second.roofline:
        assert 1 < roof.bound < 4 / 3
        assert roof.efficiency == pytest.approx(1.25 / roof.bound)
    assert second.memory.weight_bytes < first.memory.weight_bytes
    assert (second.memory.length_tokens, second.memory.max_concurrency) == (24, 200)
    assert (second.start_up.starts, second.start_up.startup_s) == (1, 12)
    assert first.dense.weights_sha256 == second.dense.weights_sha256
    assert read_points(tmp_path / "results") == points


def test_alone_only_one_engine_lives_at_a_time(bench: Bench, tmp_path: Path, dense: Path, prune: Prune) -> None:
    pruned = prune(dense, tmp_path / "p25", [1])
    points = measured(dense, pruned, tmp_path / "results", replace(SETTINGS, alive="alone"))
    assert bench.most_alive == 1
    assert bench.starts == ["dense", "p25", "p25", "dense", "dense", "p25"]  # each anew in each round
    assert [number for _, _, number in bench.rounds] == 4 * [0] + 4 * [1] + 4 * [2]
    assert [p.start_up.starts for p in points] == 4 * [3]
    assert points[0].start_up.startup_s == 14  # 11, 14 and 15
    assert {p.provenance.engines_alive for p in points} == {"alone"}


@pytest.mark.parametrize("alive", ["together", "alone"])
@pytest.mark.parametrize("kill_at", [1, 4, 7, 11])
def test_a_killed_sweep_goes_on_and_pairs_no_rounds_across_the_kill(
    bench: Bench, tmp_path: Path, dense: Path, prune: Prune, alive: Any, kill_at: int
) -> None:
    pruned, out = prune(dense, tmp_path / "p25", [1]), tmp_path / "results"
    settings = replace(SETTINGS, alive=alive)
    bench.kill_at = kill_at
    with pytest.raises(KeyboardInterrupt):
        measured(dense, pruned, out, settings)
    assert bench.alive == []
    done, bench.kill_at = len(bench.rounds), None
    before = (out / ROUNDS_NAME).read_bytes()
    points = measured(dense, pruned, out, settings)
    assert (out / ROUNDS_NAME).read_bytes().startswith(before)
    again = bench.rounds[done:]
    kept = set(bench.rounds[:done]) - set(again)
    assert len(kept) + len(again) == 12  # together they are the whole sweep
    assert len(kept) % 2 == 0
    for model, load, number in kept:  # what was kept is kept in pairs
        assert ("dense" if model == "p25" else "p25", load, number) in kept
    assert len(points) == 4
    assert {p.run for p in points} == {points[0].run}
    assert read_points(out) == sorted(points, key=lambda p: p.load.concurrency or 0)


def test_a_finished_sweep_is_not_measured_again_unless_asked_or_changed(
    bench: Bench, tmp_path: Path, dense: Path, prune: Prune
) -> None:
    pruned, out = prune(dense, tmp_path / "p25", [1]), tmp_path / "results"
    points = measured(dense, pruned, out)
    starts = len(bench.starts)
    assert measured(dense, pruned, out) == points
    assert len(bench.starts) == starts
    again = measured(dense, pruned, out, replace(SETTINGS, again=True))
    other = measured(dense, pruned, out, replace(SETTINGS, loads=replace(SETTINGS.loads, output_tokens=4)))
    assert len({points[0].run, again[0].run, other[0].run}) == 3
    assert again[0].provenance.settings_sha256 == points[0].provenance.settings_sha256
    assert other[0].provenance.settings_sha256 != points[0].provenance.settings_sha256
    assert len(bench.rounds) == 3 * 12


def test_rates_up_to_saturation_come_from_the_dense_model(
    bench: Bench, tmp_path: Path, dense: Path, prune: Prune
) -> None:
    loads = replace(SETTINGS.loads, concurrency=(2,), rates="auto", rounds=1)
    points = measured(dense, prune(dense, tmp_path / "p25", [1]), tmp_path / "results", replace(SETTINGS, loads=loads))
    dense_points = [p for p in points if p.arm.kind == "dense"]
    assert [p.load.rate_per_s for p in dense_points] == [None, 25, 50, 75, 100, 200]
    assert [p.load.prompts for p in dense_points] == [8, 64, 64, 64, 64, 64]
    assert all(p.roofline == () for p in points if p.load.rate_per_s)


def test_a_speed_up_that_cannot_be_is_said(point: Callable[..., PointRecord]) -> None:
    made = point((2, 3))  # 1.25x [1.23, 1.27] of at most 1.333x
    assert "decode 1.250x [1.230, 1.270] of at most 1.333x (93.8%)" in line(made)
    assert "more than can be" not in line(made)
    tight = made.roofline[0].model_copy(update={"bound": 1.2})
    assert "(104.2%), more than can be" in line(made.model_copy(update={"roofline": (tight,)}))


def test_no_bound_where_the_arms_have_not_the_same_steps(
    bench: Bench, tmp_path: Path, dense: Path, prune: Prune
) -> None:
    """4,800 tokens of KV cache hold 120 requests of 40: where the dense model cannot hold all that is in flight, a
    pruned one's steps are larger, and it may gain more than its blocks.
    """
    pruned = prune(dense, tmp_path / "p25", [1])
    loads = WorkloadSettings(input_tokens=30, output_tokens=10, concurrency=(1, 120, 121), prompts=128)
    points = measured(dense, pruned, tmp_path / "results", MeasureSettings(loads, alive="together"))
    bounds = {point.load.concurrency: point.bound is not None for point in points if point.arm.kind == "pruned"}
    assert bounds == {1: True, 120: True, 121: False}
    decode = {point.load.concurrency: len(point.roofline) for point in points if point.arm.kind == "pruned"}
    assert decode == {1: 2, 120: 1, 121: 0}


def test_the_dense_model_has_no_perplexity_of_its_own_where_the_texts_are_several(
    tmp_path: Path, dense: Path, prune: Prune
) -> None:
    def judged(dense_perplexity: float) -> Quality:
        fields = {"text": "t", "protocol": "p", "window_tokens": 8, "windows": 1, "predicted_tokens": 7}
        more = {"pruned_perplexity": dense_perplexity + 1, "kl_nats_per_token": 0.1}
        return Quality(**fields, dense_perplexity=dense_perplexity, **more)

    folders = [str(prune(dense, tmp_path / f"p{block}", [block])) for block in (1, 2)]
    first, *pruned = open_measured_models(str(dense), folders).all
    alike = [replace(model, quality=judged(7.0), quality_measured_on="plan") for model in pruned]
    made, measured_on = dense_quality([first, *alike])
    assert made is not None
    assert (made.pruned_perplexity, made.kl_nats_per_token, measured_on) == (7.0, 0.0, "plan")
    assert dense_quality([first, alike[0], replace(pruned[1], quality=judged(12.0))]) == (None, None)
    assert dense_quality([first, *pruned]) == (None, None)


def test_drafts_are_arms_too(bench: Bench, tmp_path: Path, dense: Path, prune: Prune) -> None:
    plan = tmp_path / "plan.json"
    read_manifest(prune(dense, tmp_path / "p25", [1])).plan.write(plan)
    models = open_measured_models(str(dense), (), [plan])
    with results_folder(tmp_path / "results") as folder:
        points = measure.measure(prepare(models, SETTINGS), folder)
    drafted = points[1]
    assert (drafted.arm.kind, drafted.arm.label) == ("draft", "draft by hand 25.0%")
    assert drafted.acceptance is not None
    # Of each load three rounds, none of them its warm-up nor another load's.
    assert [p.acceptance.drafts for p in points if p.acceptance] == [6, 6]
    assert (drafted.acceptance.rate, drafted.acceptance.length) == ((3 + 4 + 5) / 18, 3.0)
    assert drafted.arm.blocks.dropped == (1,)
    assert drafted.roofline == ()
    assert points[0].acceptance is None
    assert bench.starts == ["dense", "dense drafted"]


def test_the_commands_run_and_draft(
    bench: Bench,
    tmp_path: Path,
    reference: Path,
    prune: Prune,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bench.cli import app

    pruned, text = prune(reference, tmp_path / "p25", [2, 3, 7], virtual=True), tmp_path / "text.txt"
    text.write_text((reference.parents[1] / "LICENSE").read_text())
    lengths = ["--input-tokens", "16", "--output-tokens", "8", "--prompts", "4", "--concurrency", "2", "--rounds", "2"]

    def points(*words: str | Path) -> list[PointRecord]:
        out = tmp_path / str(words[0])
        argv = ["mi-prun-bench", *words, "--dense", reference, "-o", out, *lengths, "--engines", "together"]
        monkeypatch.setattr("sys.argv", list(map(str, argv)))
        assert run_app(app) == 0
        made = read_points(out)
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert last == {"run": made[0].run, "points": len(made)}
        return made

    dense, without = points("run", pruned)
    assert (dense.arm.kind, without.arm.kind, without.arm.weights) == ("dense", "pruned", "virtual")
    assert without.arm.blocks.dropped == (2, 3, 7)
    assert without.provenance.sweep == {}
    alone, drafted = points("draft", pruned, "--text", text, "--draft-tokens", "2")
    assert (alone.arm.kind, drafted.arm.kind, drafted.arm.draft_tokens) == ("dense", "draft", 2)
    assert alone.acceptance is None
    assert drafted.acceptance is not None
    assert (drafted.load.text, drafted.acceptance.drafts, drafted.bound) == ("text.txt", 4, None)


def test_engines_that_do_not_fit_are_refused_before_any_is_started(
    bench: Bench,
    tmp_path: Path,
    dense: Path,
    prune: Prune,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pruned, out = prune(dense, tmp_path / "p25", [1]), tmp_path / "results"

    def free(gib: float) -> None:
        memory = SimpleNamespace(available=int(gib * 2**30), total=2**35)
        monkeypatch.setattr(memory_check.psutil, "virtual_memory", lambda: memory)

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    free(5)
    with pytest.raises(UserError, match=r"too little memory for dense: .* need about 5\.5 GiB, 5\.0 GiB are free"):
        measured(dense, pruned, out, replace(SETTINGS, alive=None))
    free(10)
    with pytest.raises(UserError, match=r"--engines together: 2 engines need about 11\.0 GiB, 10\.0 GiB are free"):
        measured(dense, pruned, out)
    assert (bench.starts, out.exists()) == ([], False)
    measured(dense, pruned, out, replace(SETTINGS, alive=None))
    assert bench.most_alive == 1
    assert "a new run begins" not in capsys.readouterr().err
    free(12)
    measured(dense, pruned, out, replace(SETTINGS, alive=None))
    assert bench.most_alive == 2
    assert "(--engines alone goes on with that one)" in capsys.readouterr().err


@pytest.mark.parametrize("name", [POINTS_NAME, ROUNDS_NAME, TASKS_NAME])
def test_a_results_folder_of_another_release(
    bench: Bench, tmp_path: Path, dense: Path, prune: Prune, name: str
) -> None:
    pruned, out = prune(dense, tmp_path / "p25", [1]), tmp_path / "results"
    out.mkdir()
    (out / name).write_text('{"schema_version": 9}\n')
    with pytest.raises(UserError, match="has schema version 9; this release reads 2 and 3"):
        measured(dense, pruned, out)
    with pytest.raises(UserError, match="cannot write"):
        measured(dense, pruned, out / name)
    assert bench.starts == []


def test_a_folder_that_another_bench_writes_to(bench: Bench, tmp_path: Path, dense: Path, prune: Prune) -> None:
    pruned, out = prune(dense, tmp_path / "p25", [1]), tmp_path / "results"
    with results_folder(out), pytest.raises(UserError, match=r"--output .*results: another bench writes there"):
        measured(dense, pruned, out)
    assert bench.starts == []
    measured(dense, pruned, out)  # the mark went with its holder
    assert len(bench.starts) == 2


def quality(text: str, perplexity: float) -> Quality:
    return Quality(
        text=text,
        protocol="windows",
        window_tokens=8,
        windows=2,
        predicted_tokens=14,
        dense_perplexity=10.0,
        pruned_perplexity=perplexity,
        kl_nats_per_token=0.5,
    )


def test_another_text_to_judge_by_is_another_run(
    bench: Bench, tmp_path: Path, dense: Path, prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, out = prune(dense, tmp_path / "p25", [1]), tmp_path / "results"
    texts = {name: tmp_path / name / "text.txt" for name in ("a", "b")}  # told apart by what they hold
    for name, path in texts.items():
        path.parent.mkdir()
        path.write_text(name)
    made = {str(texts["a"]): 12.0, str(texts["b"]): 15.0}
    monkeypatch.setattr(
        "bench.quality.quality.quality_on_text", lambda dense, pruned, text, seed: [quality("text.txt", made[text])]
    )

    def judged(text: Path) -> PointRecord:
        return run(str(dense), [str(pruned)], out, SETTINGS, quality_text=str(text))[1]

    a, b, a_again = judged(texts["a"]), judged(texts["b"]), judged(texts["a"])
    assert [point.quality and point.quality.pruned_perplexity for point in (a, b, a_again)] == [12, 15, 12]
    assert a.run == a_again.run != b.run
    plain = measured(dense, pruned, out)[1]
    assert plain.quality is None
    assert plain.run not in (a.run, b.run)


def test_another_plan_of_the_same_blocks_is_another_run(
    bench: Bench, tmp_path: Path, dense: Path, prune: Prune
) -> None:
    """Its quality was measured on another text."""
    pruned, out = prune(dense, tmp_path / "p25", [1]), tmp_path / "results"
    first = measured(dense, pruned, out)[1]
    path = pruned / "mi_prun.json"
    manifest = Manifest.read(path)
    plan = manifest.plan.model_copy(update={"quality": quality("wiki", 11.0)})
    manifest.model_copy(update={"plan": plan}).write(path)
    second = measured(dense, pruned, out)[1]
    assert first.run != second.run
    assert second.quality is not None
    assert first.selection is not None
    assert second.selection is not None
    assert first.selection.plan_sha256 != second.selection.plan_sha256


def test_fewer_than_three_rounds_are_measured_and_told(
    bench: Bench, tmp_path: Path, dense: Path, prune: Prune, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = prune(dense, tmp_path / "p25", [1])
    few = replace(SETTINGS, loads=replace(SETTINGS.loads, rounds=2))
    assert len(measured(dense, pruned, tmp_path / "few", few)[0].speed.rounds) == 2
    assert "fewer than 3 rounds: intervals will be wide" in capsys.readouterr().err
    measured(dense, pruned, tmp_path / "three")
    assert "fewer than" not in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--port=80",), ("--model", "x"), ("--api-key", "k"), ("--api_key=k",)])
def test_flags_that_the_bench_sets_itself(dense: Path, flags: tuple[str, ...]) -> None:
    name = flags[0].partition("=")[0].replace("_", "-")
    with pytest.raises(UserError, match=f"--serve-flags may not hold {name}"):
        prepare(open_measured_models(str(dense), ()), replace(SETTINGS, serve_flags=flags))
