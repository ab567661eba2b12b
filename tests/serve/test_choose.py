"""What the server sets in vLLM's flags for a model of ours, and what it refuses."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from serve.served_model import ServedModel, drafted_model, planned_model, served_model
from serve.server import choose, quiet_environment, say_slow


def flags(**given: Any) -> Namespace:
    """vLLM's, at their defaults."""
    default = {
        "load_format": "auto",
        "served_model_name": None,
        "revision": None,
        "hf_config_path": None,
        "hf_overrides": {},
        "headless": False,
        "api_server_count": None,
        "speculative_config": None,
        "pipeline_parallel_size": 1,
        "disable_hybrid_kv_cache_manager": None,
    }
    return Namespace(**(default | given))


@pytest.fixture
def plan(pruned: Path, tmp_path: Path) -> Path:
    read_manifest(pruned).plan.write(tmp_path / "plan.json")
    return tmp_path / "plan.json"


@pytest.fixture
def planned(reference: Path, plan: Path, tmp_path: Path) -> ServedModel:
    return planned_model(str(reference), plan, tmp_path)


@pytest.fixture
def drafted(reference: Path, plan: Path, tmp_path: Path) -> ServedModel:
    return drafted_model(str(reference), plan, None, tmp_path)


def test_a_dense_model_is_left_to_vllm(reference: Path) -> None:
    args = flags()
    choose(served_model(str(reference)), args)
    assert args == flags()


@pytest.mark.parametrize(
    ("dtype", "slow", "cpu", "said"),
    [
        ("auto", True, True, True),
        ("float32", True, True, False),
        ("auto", False, True, False),
        ("auto", True, False, False),
    ],
)
def test_a_processor_that_multiplies_bfloat16_slowly_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: str, slow: bool, cpu: bool, said: bool
) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr("mi_prun.model.loading.lacks_bfloat16", lambda: slow)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: cpu)
    say_slow(Namespace(dtype=dtype))
    assert ("with --dtype float32 a prompt takes a fraction" in capsys.readouterr().err) is said


def test_a_written_folder_is_loaded_by_us_unless_the_user_wants_another_way(pruned: Path) -> None:
    for given, chosen in (("auto", "mi_prun"), ("safetensors", "safetensors")):
        args = flags(load_format=given)
        choose(served_model(str(pruned)), args)
        assert args == flags(load_format=chosen)


def test_a_plan_is_served_under_the_dense_models_name(planned: ServedModel, reference: Path) -> None:
    args, named = flags(), flags(served_model_name=["mine"])
    choose(planned, args)
    choose(planned, named)
    assert args == flags(load_format="mi_prun", served_model_name=[str(reference)])
    assert named.served_model_name == ["mine"]


def test_a_draft(drafted: ServedModel) -> None:
    assert drafted.draft is not None
    args = flags()
    choose(drafted, args)
    speculative = {"method": "draft_model", "model": str(drafted.draft.folder), "num_speculative_tokens": 3}
    assert args == flags(load_format="mi_prun", speculative_config=speculative)


def test_a_draft_of_blocks_of_several_kinds(
    tiny: Callable[..., Path], prune: Callable[..., Path], tmp_path: Path
) -> None:
    dense = tiny("gemma3_text", head_dim=8, sliding_window=8)
    args = flags()
    choose(drafted_model(str(dense), prune(dense, tmp_path / "pruned", (1,)), 2, tmp_path), args)
    assert args.disable_hybrid_kv_cache_manager is True


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"load_format": "dummy"}, "--load-format dummy cannot serve"),
        ({"speculative_config": {"method": "ngram"}}, "--draft and --speculative-config exclude each other"),
        ({"pipeline_parallel_size": 2}, "--draft does not go with --pipeline-parallel-size 2"),
        ({"revision": "main"}, "--revision does not go with --plan, --draft or a pruned model of the hub"),
    ],
)
def test_what_does_not_go_with_a_draft(drafted: ServedModel, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose(drafted, flags(**given))


@pytest.mark.parametrize("kind", ["pruned", "planned", "drafted"])
def test_a_config_that_says_which_blocks_are_loaded_stays_as_it_is(
    kind: str, pruned: Path, planned: ServedModel, drafted: ServedModel
) -> None:
    served = {"pruned": served_model(str(pruned)), "planned": planned, "drafted": drafted}[kind]
    with pytest.raises(UserError, match="--hf-overrides does not go with"):
        choose(served, flags(hf_overrides={"num_hidden_layers": 8}))


def test_the_config_of_a_dense_model_is_the_users_own(reference: Path) -> None:
    args = flags(hf_overrides={"num_hidden_layers": 8})
    choose(served_model(str(reference)), args)
    assert args == flags(hf_overrides={"num_hidden_layers": 8})


@pytest.mark.parametrize("given", [{"headless": True}, {"api_server_count": 2}, {"api_server_count": 0}])
def test_more_than_one_api_server_or_none(reference: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--headless and --api-server-count are not supported"):
        choose(served_model(str(reference)), flags(**given))
    choose(served_model(str(reference)), flags(api_server_count=1))


def test_the_number_of_tokens_that_a_plan_was_made_for(reference: Path, plan: Path, tmp_path: Path) -> None:
    """The user's own number comes first."""
    read = read_plan(plan, draft_tokens=5)
    read.write(plan)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for tokens, chosen, scratch in ((None, 5, "a"), (2, 2, "b")):
        served = drafted_model(str(reference), plan, tokens, tmp_path / scratch)
        assert served.draft is not None
        assert served.draft.tokens == chosen


def read_plan(path: Path, **settings: Any) -> Any:
    from mi_prun.plan.plan import Plan

    return Plan.read(path).model_copy(update={"settings": settings})


@pytest.mark.parametrize(
    ("named", "found"), [(None, None), ("", "mi_prun"), ("other", "other,mi_prun"), ("mi_prun,other", "mi_prun,other")]
)
def test_our_plugin_is_among_those_that_vllm_loads(
    monkeypatch: pytest.MonkeyPatch, named: str | None, found: str | None
) -> None:
    """It loads all of them unless the variable names some. An engine is spawned, as vLLM's own commands do it."""
    environment = {} if named is None else {"VLLM_PLUGINS": named}
    monkeypatch.setattr("serve.server.os.environ", environment)
    quiet_environment()
    assert environment.get("VLLM_PLUGINS") == found
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
