"""Log-probabilities of an endpoint beside transformers': what is let pass, and what is said of the rest."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.models.whole_folder import whole_folder
from bench.records.task_schema import LogprobCheck
from bench.tasks import logprob_check
from bench.tasks.logprob_check import Direct, check_logprobs, check_memory, direct_logprobs, measure
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError

DROPPED = [2, 3, 7]
NAME = "model.layers.1.mlp.down_proj.weight"
DIRECT = Direct(computed="float32, cpu", tokens=((5, 6, 7), (8, 9)), logprobs=((-1.0, -2.0), (-3.0,)))


class Endpoint:
    """Stands for an endpoint: the log-probabilities of each prompt in turn."""

    url = "http://there"

    def __init__(self, *logprobs: list[float]) -> None:
        self.logprobs = logprobs
        self.asked: list[tuple[int, ...]] = []

    def prompt_logprobs(self, tokens: Sequence[int]) -> list[float]:
        self.asked.append(tuple(tokens))
        return self.logprobs[(len(self.asked) - 1) % len(self.logprobs)]


def test_log_probabilities_of_another_model_are_refused() -> None:
    endpoint = Endpoint([-1.0, -2.0])

    def direct(*logprobs: float) -> Direct:
        return Direct(computed="float32, cpu", tokens=((5, 6, 7),), logprobs=(logprobs,))

    check = check_logprobs(endpoint, direct(-1.02, -1.98))
    assert (check.tokens, check.mean_nats, check.max_nats) == (2, pytest.approx(0.02), pytest.approx(0.02))
    with pytest.raises(UserError, match=r"differ by 0\.2500 nats on the mean \(at most 0\.3000\).*more than 0\.05"):
        check_logprobs(endpoint, direct(-1.2, -1.7))
    assert check_logprobs(endpoint, direct(-1.2, -1.7), tolerance=0.3).tolerance_mean_nats == 0.3


def test_what_the_models_own_type_rounds_is_let_pass() -> None:
    direct = Direct(computed="float32, cpu", rounding_nats=0.04, tokens=((5, 6, 7),), logprobs=((-1.08, -2.08),))
    endpoint = Endpoint([-1.0, -2.0])
    assert check_logprobs(endpoint, direct).rounding_nats == 0.04  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"more than 0\.03 and the 0\.0400 that its type rounds; is it another model"):
        check_logprobs(endpoint, direct, tolerance=0.03)  # type: ignore[arg-type]


def test_what_a_16_bit_type_rounds_is_measured_and_a_float32_model_rounds_nothing(
    reference: Path, tmp_path: Path
) -> None:
    """The bundled model's weights are bfloat16's: written as float32 they are the same numbers."""
    whole = Path(shutil.copytree(reference, tmp_path / "whole"))
    tensors = load_file(whole / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    save_file({name: t.float() for name, t in tensors.items()}, whole / "model.safetensors", {"format": "pt"})
    half, full = measure(str(reference), "cpu"), measure(str(whole), "cpu")
    assert half.logprobs == full.logprobs
    assert 1e-4 < half.rounding_nats < 0.1
    assert full.rounding_nats == 0.0


def test_a_virtual_checkpoint_is_computed_as_the_written_one(
    prune: Callable[..., Path], reference: Path, tmp_path: Path
) -> None:
    virtual = prune(reference, tmp_path / "virtual", DROPPED, virtual=True)
    written = prune(reference, tmp_path / "written", DROPPED)
    direct = [measure(str(path), "cpu") for path in (virtual, written, reference)]
    assert direct[0].tokens == direct[1].tokens == direct[2].tokens
    flat = [torch.tensor([value for row in each.logprobs for value in row]) for each in direct]
    torch.testing.assert_close(flat[0], flat[1], rtol=0, atol=1e-4)
    assert (flat[0] - flat[2]).abs().mean() > 0.2  # dropping three blocks is no rounding


def test_a_virtual_healed_checkpoint_is_computed_with_what_it_learned(
    prune: Callable[..., Path], heal_virtual: Callable[..., Path], reference: Path, tmp_path: Path
) -> None:
    """As it is served. Where its dense model lies elsewhere than the plan says, too."""
    moved = Path(shutil.copytree(reference, tmp_path / "moved"))
    plain = prune(moved, tmp_path / "plain", DROPPED, virtual=True)
    own = load_file(moved / "model.safetensors")[NAME] * 1.5
    healed = heal_virtual(moved, read_manifest(plain).plan, tmp_path / "healed", NAME, own)
    before, after = (measure(str(folder), "cpu") for folder in (plain, healed))
    with whole_folder(str(healed)) as whole:
        assert measure(whole, "cpu").logprobs == after.logprobs
    apart = torch.tensor(before.logprobs[0]) - torch.tensor(after.logprobs[0])
    assert apart.abs().mean() > 0.01


def test_differences_are_counted_whatever_their_sign_over_all_strings() -> None:
    endpoint = Endpoint([-1.25, -1.75], [-3.25])
    assert check_logprobs(endpoint, DIRECT, tolerance=0.25) == LogprobCheck(  # type: ignore[arg-type]
        strings=2, tokens=3, mean_nats=0.25, max_nats=0.25, tolerance_mean_nats=0.25, direct="float32, cpu"
    )  # as much as the tolerance is let pass
    assert endpoint.asked == [(5, 6, 7), (8, 9)]
    with pytest.raises(
        UserError, match=r"http://there are not .* over 3 tokens .* more than 0\.2; .*--logprob-tolerance"
    ):
        check_logprobs(endpoint, DIRECT, tolerance=0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [[-1.0, math.nan], [math.nan, -2.0], [-math.inf, -2.0]])
def test_what_is_no_number_is_within_no_tolerance(said: list[float]) -> None:
    direct = Direct(computed="float32, cpu", tokens=((5, 6, 7),), logprobs=((-1.0, -2.0),))
    with pytest.raises(UserError, match="http://there returns log-probabilities that are not finite numbers"):
        check_logprobs(Endpoint(said), direct, tolerance=1e9)  # type: ignore[arg-type]


def test_a_model_that_gives_no_numbers_is_refused_where_it_is_computed(reference: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(reference, tmp_path / "damaged"))
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.norm.weight"].fill_(math.nan)
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"damaged gives log-probabilities that are not finite numbers"):
        measure(str(damaged), "cpu")


def test_one_wild_token_is_told_and_let_pass_where_the_mean_is_small() -> None:
    many = Direct(computed="x", tokens=(tuple(range(101)),), logprobs=((-1.0,) * 100,))
    check = check_logprobs(Endpoint([-1.0] * 99 + [-3.0]), many)  # type: ignore[arg-type]
    assert (check.mean_nats, check.max_nats) == (pytest.approx(0.02), 2)


def test_an_endpoint_that_skips_a_token_is_no_match() -> None:
    with pytest.raises(ValueError, match="longer"):
        check_logprobs(Endpoint([-1.0], [-3.0]), DIRECT)  # type: ignore[arg-type]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """`answered(stdout, stderr, status)`: the process that computes ends so; returns the commands it was started by."""

    def set_answer(stdout: str = "", stderr: str = "", returncode: int = 0) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], **options: Any) -> Any:
            commands.append(command[1:])
            return SimpleNamespace(stdout=stdout, stderr=stderr, returncode=returncode)

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return set_answer


def test_the_last_line_of_the_process_is_what_it_computed(answered: Callable[..., list[list[str]]]) -> None:
    commands = answered(f"a library's words\n{DIRECT.model_dump_json()}\n")
    assert direct_logprobs("owner/model") == direct_logprobs("owner/model", "cpu") == DIRECT
    plain = ["-P", "-m", "bench.tasks.logprob_check", "owner/model"]
    assert commands == [plain, [*plain, "--device", "cpu"]]


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [("warning\nerror: no such folder\n", "no such folder"), ("", "status -9"), ("Killed\n", "Killed")],
)
def test_a_process_that_fails_is_said_with_the_way_out(
    answered: Callable[..., list[list[str]]], stderr: str, reason: str
) -> None:
    answered(stderr=stderr, returncode=-9)
    said = f"log-probabilities of m by transformers: {reason} (--no-logprob-check leaves them out)"
    with pytest.raises(UserError) as raised:
        direct_logprobs("m")
    assert str(raised.value) == said


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 x 2^30 parameters and one: in four bytes a little over 8 GiB, in two a little over 4."""
    shapes = ((1 << 15, 1 << 15), (1 << 30,), (1,))
    tensors = {str(place): (None, SimpleNamespace(shape=shape)) for place, shape in enumerate(shapes)}
    folder: Any = SimpleNamespace(name="owner/model", tensors=tensors)
    memory = SimpleNamespace(available=8 * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    device = torch.device("cpu")
    check_memory(folder, device, torch.bfloat16)
    with pytest.raises(UserError, match=r"owner/model takes 8\.0 GiB there, 8\.0 GiB are free"):
        check_memory(folder, device, torch.float32)
    memory.available += 4
    check_memory(folder, device, torch.float32)  # just as much as there is
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**40))
    with pytest.raises(UserError, match=r"takes 4\.0 GiB there, 1\.0 GiB are free"):
        check_memory(folder, torch.device("cuda"), torch.bfloat16)


def test_the_process_prints_what_it_computed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def computed(*given: Any) -> Direct:
        asked.append(given)
        return DIRECT

    monkeypatch.setattr(logprob_check, "measure", computed)
    monkeypatch.setattr("sys.argv", ["logprob_check", "owner/model", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        logprob_check.main()
    assert (ended.value.code, asked) == (0, [("owner/model", "cpu")])
    assert Direct(**json.loads(capsys.readouterr().out)) == DIRECT
