"""Flags and ab.toml become one checked Config; what is wrong is one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from mi_prun.artefact import Record
from mi_prun.errors import UserError
from serve.ab.cli import add_flags, config_of, split_off_engine_flags
from serve.ab.config import ArmConfig, Config, read_config

TOML = """
model_name = "llama"
split = {dense = 95, pruned = 5}
sticky = ["user"]
guardrails = ["error_rate<1%"]
[arms.dense]
model = "owner/dense"
flags = ["--max-model-len", "4096"]
env = {CUDA_VISIBLE_DEVICES = "0"}
[arms.pruned]
url = "http://10.0.0.2:8000/"
upstream_model = "pruned-llama"
[limits]
concurrency = 8
[shadow]
share = 0.1
"""


def parsed(*words: str) -> Config:
    import argparse

    parser = argparse.ArgumentParser()
    add_flags(parser)
    own, engine_flags = split_off_engine_flags(list(words))
    return config_of(parser.parse_args(own), engine_flags)


def test_flags() -> None:
    config = parsed(
        *("--arm", "dense=owner/model", "--arm", "pruned=plan.json", "--split", "dense=95,pruned=5"),
        *("--", "--dtype", "half"),
    )
    assert config.weights == {"dense": 95.0, "pruned": 5.0}
    assert (config.control, config.model_name) == ("dense", "owner/model")
    assert config.arms["pruned"].plan == Path("plan.json")
    assert all(arm.flags == ("--dtype", "half") for arm in config.arms.values())


def test_a_file_and_flags_that_win_over_it(tmp_path: Path) -> None:
    file = tmp_path / "ab.toml"
    file.write_text(TOML)
    config = parsed("--config", str(file), "--shadow-share", "0.5", "--split", "dense=1", "--drain-seconds", "3")
    assert config.shadow.share == 0.5
    assert config.weights == {"dense": 1.0, "pruned": 0.0}
    assert (config.limits.concurrency, config.limits.drain_s) == (8, 3.0)
    assert config.arms["pruned"].upstream_model == "pruned-llama"
    assert config.sticky == ("user",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no arm: give --arm NAME=TARGET"),
        (("--arm", "dense"), "it is NAME=TARGET"),
        (("--arm", "a=o/m", "--arm", "a=o/n"), "every arm needs a name of its own"),
        (("--arm", "a b=o/m"), "arm name 'a b'"),
        (("--arm", "a=o/m", "--split", "b=1"), "split names 'b', which is no arm (arms: a)"),
        (("--arm", "a=o/m", "--split", "a=0"), "at least one arm must have a weight above 0"),
        (("--arm", "a=o/m", "--split", "a=-1"), "weight of a must be in 0..1,000,000, got -1"),
        (("--arm", "a=o/m", "--split", "a=nan"), "split.a: Input should be a finite number"),
        (("--arm", "a=o/m", "--split", "a=1,a=2"), "a is named twice"),
        (("--arm", "a=o/m", "--split", "a"), "it is NAME=WEIGHT,NAME=WEIGHT, got 'a'"),
        (("--arm", "a=http://user:word@10.0.0.1", "--model-name", "m"), "url must not hold a password"),
        (("--arm", "a=http://", "--model-name", "m"), "url must be http://HOST"),
        (("--arm", "a=http://h:99999", "--model-name", "m"), "Port out of range"),
        (("--arm", "a=http://h:abc", "--model-name", "m"), "Port could not be cast"),
        (("--arm", "a=http://h:0", "--model-name", "m"), "port must be in 1..65535"),
        (("--arm", "a=http://b\u00fccher.example", "--model-name", "m"), "printable ASCII only"),
        (("--arm", "a=http://h/\u00fc", "--model-name", "m"), "printable ASCII only"),
        (("--arm", "a=http://a..b", "--model-name", "m"), "'a..b' is no host name and no address"),
        (("--arm", f"a=http://{'x' * 64}.b", "--model-name", "m"), "is no host name and no address"),
        (("--arm", "a=http://h:8000/v1/", "--model-name", "m"), "leave /v1 out"),
        (("--arm", "a=o/m", "--model-name", "m@a"), "model_name 'm@a'"),
        (("--arm", "a=o/m", "--control", "b"), "control 'b' is no arm"),
        (("--arm", "a=o/m", "--shadow-share", "2"), "shadow.share: Input should be less than or equal to 1, got 2.0"),
        (("--arm", "a=o/m", "--port", "0"), "port: Input should be greater than or equal to 1"),
        (("--arm", "a=o/m", "--experiment", "a b"), "experiment 'a b'"),
        (("--arm", "a=http://h", "--model-name", "m", "--", "--dtype", "half"), "every arm has a URL"),
    ],
)
def test_one_line(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as error:
        parsed(*words)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("modle_name = 'm'\n[arms.a]\nmodel='o/m'", "modle_name: there is no such field"),
        ("[arms.a]\nmodel='o/m'\nprot=1", "arms.a.prot: there is no such field"),
        ("[arms.a]\nmodel='o/m'\n[limits]\nbody=1", "limits.body: there is no such field"),
        ("[arms.a]\nmodel='o/m'\nurl='http://h'", "url does not go with model"),
        (
            "[arms.a]\nmodel='o/m'\napi_key_env='K'",
            "upstream_model and api_key_env are of an engine that runs elsewhere",
        ),
        ("[arms.a]\nmodel='o/m'\nhealth_path='/h'", "health_path is of an engine that runs elsewhere"),
        ("[arms.a]\nurl='http://h'\nhealth_path='h'", "a path from / on"),
        ("[arms.a]", "name a model, a plan or a url"),
        ("[arms.a", "is not TOML"),
        ("model_aliases=['a b']\n[arms.a]\nmodel='o/m'", "printable ASCII without spaces"),
        ("model_aliases=['']\n[arms.a]\nmodel='o/m'", "a name must not be empty"),
        ("cors_origins=['h']\n[arms.a]\nmodel='o/m'", "must be http://HOST[:PORT]"),
        ("cors_origins=['https://h/']\n[arms.a]\nmodel='o/m'", "must be http://HOST[:PORT]"),
        ("sticky_header='a: b'\n[arms.a]\nmodel='o/m'", "is no header name"),
    ],
)
def test_one_line_of_a_file(toml: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "ab.toml"
    file.write_text(toml)
    with pytest.raises(UserError) as error:
        read_config(file, {})
    assert said in str(error.value)


def command(*words: Any, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    import os

    line = [sys.executable, "-m", "serve.ab.cli", *map(str, words)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(env or {})}
    )


def test_the_command_says_it_in_one_line_with_status_2(tmp_path: Path) -> None:
    """What is wrong with the second arm's model is found before the first one's engine is started."""
    reference = Path(__file__).parents[3] / "bench" / "reference"
    done = command(
        "--arm", f"dense={reference}", "--arm", "pruned=./nothing", "--state", tmp_path / "s", "--port", 1234
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: arm pruned: model ./nothing: no such folder")
    done = command("--arm", f"dense={reference}", "--", "--api-key", "x")
    assert "arm dense: --api-key is set by mi-prun-ab itself" in done.stderr
    assert not (tmp_path / "s").exists()


def test_secrets_that_are_none(tmp_path: Path) -> None:
    arm = ("--arm", "a=http://127.0.0.1:1", "--model-name", "m", "--state", tmp_path / "s")
    short = command(*arm, env={"MI_PRUN_AB_ADMIN_KEY": "short"})
    assert (short.returncode, "short" in short.stderr) == (2, False)
    same = command(*arm, env={"MI_PRUN_AB_ADMIN_KEY": "k" * 9, "MI_PRUN_AB_API_KEYS": "k" * 9})
    assert "the admin key must not be an API key too" in same.stderr


@pytest.mark.parametrize(
    "url",
    [
        *("http://h", "https://engines.example.org/a/b/", "http://my_service:8000", "http://10.0.0.1:8000"),
        *("http://[::1]:8000", "http://xn--bcher-kva.example.", "http://a.b.svc.cluster.local"),
    ],
)
def test_urls_that_are_some(url: str) -> None:
    assert parsed("--arm", f"a={url}", "--model-name", "m").arms["a"].url == url


def test_a_url_without_a_models_name_is_asked_for_it_at_the_start(tmp_path: Path) -> None:
    assert parsed("--arm", "a=http://10.0.0.1").model_name == ""
    done = command("--arm", "a=http://127.0.0.1:9", "--state", tmp_path / "s", "--port", 1234)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: model_name is missing, and arm a does not say it at http://127.0.0.1:9/v1/models (")
    assert not (tmp_path / "s").exists()


def test_help_shows_an_example() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "mi-prun-ab --arm dense=MODEL --arm pruned=pruned/ --split dense=95,pruned=5" in done.stdout


def test_the_page_has_each_field_with_its_default() -> None:
    """A field without a default is filled in from the arms, or is empty."""
    page = (Path(__file__).parents[3] / "docs" / "reference" / "ab.md").read_text()
    told = dict(re.findall(r"^\| `([a-zA-Z_.]+)` \| (?:`(.*?)`|empty) \|", page.partition("### Fields")[2], re.M))
    fields: dict[str, Any] = {}
    for prefix, model in (("", Config), ("arms.NAME.", ArmConfig)):
        for name, field in model.model_fields.items():
            if isinstance(default := field.get_default(call_default_factory=True), Record):
                fields |= {f"{prefix}{name}.{inner}": value for inner, value in default}
            elif name != "arms":
                fields[prefix + name] = default
    fields["experiment"] = Config.model_validate({"arms": {"a": {"model": "m"}}}).experiment
    assert told.keys() == fields.keys()
    for name, value in fields.items():
        empty = value in (None, (), {}, PydanticUndefined)
        written = str(value) if isinstance(value, Path) else value
        assert (json.loads(told[name]) if told[name] else None) == (
            None if empty else list(value) if isinstance(value, tuple) else written
        ), name
