"""The recipe of the bundled model: it learns, says how well, and goes on where it was stopped or killed."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.cli import app
from bench.training.train import learning_rate, train
from bench.training.train_settings import TrainSettings
from mi_prun.console import run_app
from mi_prun.errors import UserError

TINY = TrainSettings(blocks=2, hidden=32, heads=2, vocabulary=300, context=32, tokens=24_000, batch_tokens=256)
PROGRAM = """
import json, sys, time
from pathlib import Path
import bench.training.train, torch
from bench.training.train_settings import TrainSettings
from mi_prun.console import run_command
bench.training.train.SAVE_SECONDS = 0.05
rate, pace_s = bench.training.train.learning_rate, float(sys.argv[4])
bench.training.train.learning_rate = lambda *words: time.sleep(pace_s) or rate(*words)  # asked for once a step
torch.set_num_threads(1)
settings = TrainSettings(**json.loads(sys.argv[3]))
sys.exit(run_command(lambda: bench.training.train.train([sys.argv[1]], Path(sys.argv[2]), settings, device="cpu")))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = list("abcdefghijklmnopq")
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n\n".join(" ".join(draw.choices(words, k=400)) for _ in range(60)))
    return path


def start(text: Path, out: Path, settings: TrainSettings, *, pace_s: float = 0.0) -> subprocess.Popen[str]:
    """pace_s: what each of its 94 steps takes at least, so that it is not over before it is interrupted."""
    words = [sys.executable, "-c", PROGRAM, str(text), str(out), settings.model_dump_json(), str(pace_s)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_learns_and_its_card_says_what_the_written_weights_do(text: Path, tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "model"
    trained = train([str(text)], out, TINY.model_copy(update={"family": family}), device="cpu")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    assert model.config.model_type == family
    assert len(model.model.layers) == 2
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer.decode(tokenizer("The dog – ran")["input_ids"], skip_special_tokens=True) == "The dog – ran"
    assert trained.perplexity < 60  # of 275 entries, 17 letters
    assert f"{trained.perplexity:.2f} over {trained.held_out_tokens:,} tokens" in (out / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    ids = tokenizer("b a d c f e h g j i l k", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss < 4.5  # a random model: log(275) = 5.6


@pytest.mark.long
def test_stopped_or_killed_it_goes_on_to_the_same_weights(text: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the program has it: the sums are in the same order
    try:
        train([str(text)], whole, TINY, device="cpu")
    finally:
        torch.set_num_threads(threads)
    folder = tmp_path / "parts.training"
    for again, (signum, status) in enumerate(((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143))):
        run = start(text, parts, TINY, pace_s=0.1)
        before = (folder / "state.safetensors").stat().st_mtime_ns if again else 0
        deadline = time.monotonic() + 100
        state = folder / "state.safetensors"
        while not state.exists() or state.stat().st_mtime_ns <= before:
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signum)
        _, said = run.communicate(timeout=60)
        assert run.returncode == status, said
        assert not parts.exists()
    run = start(text, parts, TINY)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert "going on from step" in said
    one, other = (load_file(path / "model.safetensors") for path in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not folder.exists()


def test_a_disk_that_fills_up_under_the_last_write_keeps_the_training(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files, set when the checkpoint is there, stands for the full disk."""
    import bench.training.train

    fit = bench.training.train.fit
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fit_then_fill(*args: Any) -> float:
        seconds = fit(*args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        return seconds

    monkeypatch.setattr(bench.training.train, "fit", fit_then_fill)
    try:
        with pytest.raises(UserError, match=r"cannot write .*model: .*; the training is kept"):
            train([str(text)], tmp_path / "model", TINY, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["model.training"]
    monkeypatch.undo()
    assert train([str(text)], tmp_path / "model", TINY, device="cpu").perplexity < 60
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_settings_do_not_go_on_from_a_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "model.training"
    monkeypatch.setattr("bench.training.train._write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train([str(text)], tmp_path / "model", TINY.model_copy(update={"tokens": 512}), device="cpu")
    assert (folder / "state.safetensors").exists()
    with pytest.raises(UserError, match="other settings"):
        train([str(text)], tmp_path / "model", TINY.model_copy(update={"seed": 5}))
    (folder / "state.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="to begin again"):
        train([str(text)], tmp_path / "model", TINY.model_copy(update={"tokens": 512}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "gpt2"}, "--family must be one of"),
        ({"blocks": 1}, "--blocks must be at least 2"),
        ({"hidden": 30}, "multiple of twice --heads"),
        ({"tokens": 0}, "--tokens must be at least 1"),
        ({"seed": -1}, r"--seed must be in 0\.\.2147483647"),
        ({"learning_rate": 2.0}, "--learning-rate must be in"),
        ({"context": 9_000}, "less than one window of 9000"),
    ],
)
def test_settings_that_will_not_do_leave_nothing(
    text: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train([str(text)], tmp_path / "model", TINY.model_copy(update=change))
    assert not any(tmp_path.iterdir())


def test_the_command_says_one_line_about_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["none.txt", "-o", "out"], "no such file"),
        (["none.pdf", "-o", "model"], "is not empty"),
        (["model/mine.txt", "-o", "model", "--force"], "is or holds model/mine.txt, which is read"),
    ):
        monkeypatch.setattr(sys, "argv", ["mi-prun-bench", "train", *words])
        status, (out, err) = run_app(app), capsys.readouterr()
        assert (status, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    settings = TrainSettings(tokens=4_096 * 1_000)
    rates = [learning_rate(step, settings) for step in range(settings.steps)]
    assert settings.steps == 1_000
    assert max(rates) == pytest.approx(settings.learning_rate)
    assert rates[:30] == sorted(rates[:30])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[-1] == pytest.approx(0.1 * settings.learning_rate, rel=1e-3)


def test_settings_survive_json() -> None:
    assert TrainSettings(**json.loads(TINY.model_dump_json())) == TINY
