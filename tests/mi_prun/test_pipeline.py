"""`mi-prun prune` in one process: the model is opened, digested and loaded once, and refused before the long pass."""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mi_prun import pipeline
from mi_prun.analysis.analysis import ARRAYS, read_analysis
from mi_prun.analysis.analyze import analyze, make_analysis
from mi_prun.errors import UserError
from mi_prun.model import model_folder, weight_files
from mi_prun.model.model_folder import open_model
from mi_prun.plan.ratio import Amount
from mi_prun.recovery.judge import NoBetterError
from mi_prun.settings import AnalyzeSettings, HealSettings, PlanSettings, WriteSettings


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of a function, which still does its work."""
    calls: list[tuple[Any, ...]] = []
    function = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, call)
    return calls


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened by Python code, by its name."""
    counts: Counter[str] = Counter()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, str | os.PathLike):
                counts[Path(file).name] += 1
            return function(file, *args, **kwargs)

        return call

    monkeypatch.setattr(builtins, "open", counting(builtins.open))
    monkeypatch.setattr(io, "open", counting(io.open))
    return counts


@pytest.fixture
def prune(harbour: Path, tmp_path: Path) -> Callable[..., pipeline.Pruned]:
    """`prune(model, options)` of three blocks into `tmp_path / "out"`."""

    def call(
        model: Path,
        amount: Amount | None = None,
        *,
        plan: PlanSettings | None = None,
        write: WriteSettings | None = None,
        heal: HealSettings | None = None,
        **analyze_options: Any,
    ) -> pipeline.Pruned:
        options: dict[str, Any] = {
            "sources": (str(harbour),),
            "scoring_tokens": 128,
            "window_tokens": 64,
            "device": "cpu",
        }
        return pipeline.prune(
            model,
            tmp_path / "out",
            amount or Amount(ratio=0.25),
            AnalyzeSettings(**(options | analyze_options)),
            plan or PlanSettings(rerank=4, device="cpu"),
            write or WriteSettings(),
            heal=heal,
        )

    return call


def test_the_model_is_opened_digested_and_loaded_once(
    reference: Path,
    tmp_path: Path,
    prune: Callable[..., pipeline.Pruned],
    opened: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the lowest functions that do it: of transformers, and of this package."""
    from safetensors.torch import load_file, save_file
    from transformers import LlamaForCausalLM, PreTrainedConfig

    model = Path(shutil.copytree(reference, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    homes = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in sorted(set(homes.values())):
        own = {name: tensor for name, tensor in tensors.items() if homes[name] == file}
        save_file(own, model / file, {"format": "pt"})
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    shards = sorted(set(homes.values()))

    headers = counted(monkeypatch, weight_files, "read_shard")
    digests = counted(monkeypatch, model_folder, "weight_digests")
    objects = counted(monkeypatch, model_folder, "read_json_object")
    configs = counted(monkeypatch, model_folder, "pretrained_config")
    tokenizers = counted(monkeypatch, model_folder, "pretrained_tokenizer")
    library_configs = counted(monkeypatch, PreTrainedConfig, "get_config_dict")
    loads: list[object] = []
    from_pretrained = LlamaForCausalLM.from_pretrained
    monkeypatch.setattr(
        LlamaForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or from_pretrained(*a, **k)
    )
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *a, **k: pytest.fail("a temporary folder was made"))
    opened.clear()
    prune(model)
    assert sorted(path.name for (path,) in headers) == shards
    assert (len(digests), len(loads), len(configs), len(tokenizers)) == (1, 1, 1, 1)
    assert [path.name for path, _ in objects] == ["config.json"]
    assert library_configs == []
    # config.json: read once, and written once into the new folder.
    assert opened["config.json"] == 2
    assert opened["model.safetensors.index.json"] == 1
    # header, digest, and the bytes that are copied: one open for each run of neighbouring tensors.
    assert all(opened[shard] >= 3 for shard in shards)


def test_it_is_analyze_plan_and_apply(
    reference: Path, harbour: Path, tmp_path: Path, prune: Callable[..., pipeline.Pruned]
) -> None:
    """The analysis in memory is the one that is written and read back."""
    pruned = prune(reference)
    settings = AnalyzeSettings(sources=(str(harbour),), scoring_tokens=128, window_tokens=64, device="cpu")
    dense = open_model(reference)
    analyze(dense, tmp_path / "analysis", settings)
    read, made = read_analysis(tmp_path / "analysis"), make_analysis(dense, settings)
    assert made is not None
    assert made.record == read.record
    for name in ARRAYS:
        wanted, array = getattr(read, name), getattr(made, name)
        assert array.dtype == wanted.dtype
        assert (array == wanted).all()
    assert pruned.plan.settings["analysis"] == read.record.fingerprint
    assert pruned.manifest.plan == pruned.plan
    assert len(pruned.plan.dropped) == 3


def test_several_texts_choose_and_measure_together(
    reference: Path, harbour: Path, tmp_path: Path, prune: Callable[..., pipeline.Pruned]
) -> None:
    ships = tmp_path / "ships.txt"
    ships.write_text(" ".join(f"The year {n} brought {n * n % 97} ships." for n in range(3_000)))
    pruned = prune(reference, sources=(f"{harbour}=3", str(ships)))
    quality = pruned.plan.quality
    assert pruned.plan.settings["calibration"] == "harbour.txt (3), ships.txt (1)"
    assert quality is not None
    assert (quality.text, quality.windows) == ("harbour.txt (3), ships.txt (1), held-out part", 4)


def test_blocks_that_were_chosen_are_said_where_healing_does_not_help(
    reference: Path, prune: Callable[..., pipeline.Pruned], monkeypatch: pytest.MonkeyPatch
) -> None:
    def heal_model(*args: Any, **options: Any) -> None:
        raise NoBetterError("healing (fit) does not help")

    monkeypatch.setattr(pipeline, "heal_model", heal_model)
    fit = HealSettings(train="none")
    tail = PlanSettings(method="tail", quality=False, device="cpu")
    with pytest.raises(NoBetterError, match=r"does not help; the blocks chosen: --drop 9,10,11$"):
        prune(reference, plan=tail, heal=fit)
    with pytest.raises(NoBetterError, match=r"does not help$"):
        prune(reference, Amount(drop="4-5"), plan=PlanSettings(quality=False, device="cpu"), heal=fit)


def test_a_model_that_cannot_be_healed_is_refused_before_the_choice(
    reference: Path, prune: Callable[..., pipeline.Pruned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_analysis(*args: Any, **options: Any) -> None:
        raise AssertionError("the choice has begun")

    monkeypatch.setattr(pipeline, "make_analysis", make_analysis)
    with pytest.raises(UserError, match="--rank 5000 is larger than a matrix of the model"):
        prune(reference, heal=HealSettings(tokens=1_024, rank=5_000))
    assert not (tmp_path / "out").exists()


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def bad_field(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attn_layer_period": 2}))


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (no_tokenizer, {}, "has no usable tokenizer"),
        (bad_field, {}, "attn_layer_period"),
        (None, {"amount": Amount(ratio=1.5)}, r"--ratio must be in \(0, 1\)"),
        (None, {"amount": Amount(max_kl=-1.0)}, "--max-kl must be over 0"),
        (None, {"amount": Amount()}, "give exactly one of"),
        (None, {"plan": PlanSettings(method="magic")}, "--method must be one of"),
        (None, {"plan": PlanSettings(criterion="mse")}, "--criterion must be one of"),
        (None, {"plan": PlanSettings(rerank=-1)}, "--rerank must be in"),
        (None, {"plan": PlanSettings(recall=0.6)}, "--recall is the share of a window"),
        (
            None,
            {"amount": Amount(drop="1"), "plan": PlanSettings(method="bi", recall=0.1)},
            "--drop names the blocks, nothing is chosen: leave out --method, --recall",
        ),
        (None, {"plan": PlanSettings(method="tail", rerank=24)}, "--rerank 24: the method tail proposes one set"),
        (None, {"sources": ("gone.txt",)}, "gone.txt: no such file"),
        (
            None,
            {"sources": ("gone.txt",), "amount": Amount(drop="1"), "plan": PlanSettings()},
            "gone.txt: no such file",
        ),
        (None, {"estimator": "magic"}, "estimator must be one of"),
        (None, {"projection": 10_000, "estimator": "ksg"}, "needs at least"),
    ],
)
def test_what_can_be_known_before_the_pass_is_refused_before_it(
    reference: Path,
    tmp_path: Path,
    prune: Callable[..., pipeline.Pruned],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None] | None,
    options: dict[str, Any],
    said: str,
) -> None:
    model = Path(shutil.copytree(reference, tmp_path / "model"))
    if change is not None:
        change(model)
    monkeypatch.setattr(pipeline, "load_on", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=said):
        prune(model, **options)
    assert not (tmp_path / "out").exists()


def test_the_output_is_looked_at_before_the_model(tmp_path: Path, prune: Callable[..., pipeline.Pruned]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(UserError, match="is not empty"):
        prune(tmp_path / "no-such-model")


def test_an_output_inside_the_model_is_refused(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "model")
    with pytest.raises(UserError, match="is, holds or lies in the dense model's folder"):
        pipeline.check_prunable(
            open_model(tmp_path / "model"),
            tmp_path / "model" / "out",
            Amount(ratio=0.25),
            AnalyzeSettings(),
            PlanSettings(),
            WriteSettings(),
        )
