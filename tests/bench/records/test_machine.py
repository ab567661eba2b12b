"""Where a figure comes from."""

from __future__ import annotations

import socket

import pytest

from bench.records.machine import commit, environment, machine_words, this_machine, versions
from bench.records.schema import Machine


def test_this_machine_without_its_name() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert socket.gethostname() not in machine.model_dump_json().split('"')


def test_a_machine_in_words() -> None:
    machine = Machine(cpu="EPYC", cores=2, memory_bytes=2**34, gpu=None, system="Linux x86_64")
    assert machine_words(machine) == "EPYC, 2 cores, 16 GiB; no GPU; Linux x86_64"
    gpu = machine.model_copy(update={"gpu": "H100, 80 GiB"})
    assert machine_words(gpu) == "EPYC, 2 cores, 16 GiB; H100, 80 GiB, driver unknown; Linux x86_64"


def test_versions_and_the_variables_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"mi-prun", "python", "torch"} <= versions().keys()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert environment()["OMP_NUM_THREADS"] == "3"
    assert "secret" not in environment().values()


def test_a_copy_without_history_says_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_PRUN_COMMIT", "0123abc")
    assert commit() == "0123abc"
