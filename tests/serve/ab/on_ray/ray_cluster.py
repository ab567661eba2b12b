"""What `mi-prun-ab export --to ray-serve` writes, on a real Ray cluster: `make ray`. It takes minutes.

Two nodes of one machine, the bundled model dense on one and pruned on the other, vLLM for CPUs, the `openai` client:

1. Both arms answer at their weights, whole and streamed.
2. An engine is killed under load, then a whole replica. No request that had not begun to answer is lost, and each comes
   back.
3. An export with other weights is deployed. The shares follow; no engine is started anew.
4. All that was started is ended. Nothing of it is left.

The last line is JSON. The exit status is 1 where a claim does not hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import openai
import psutil
from scipy.stats import binomtest

from mi_prun.process_group import ProcessGroup, free_port, local_addresses_direct
from serve.ab.on_ray.deployment_name import INGRESS, deployment_of

ROOT = Path(__file__).parents[4]
WORK = ROOT / "build" / "ray"
BIN = Path(sys.executable).parent
RUN = "MI_PRUN_RAY_RUN"  # a variable of every process that is started here, by which those that are left are found
NAME = "story"
EXPERIMENT = "trial"
BEFORE = {"dense": 3, "pruned": 1}
AFTER = {"dense": 1, "pruned": 4}
REQUESTS = 240
MOST_MOVED = 0.05  # of the requests, by failover, while nothing is killed
CLIENTS = 4
LEVEL = 0.999  # of the interval that a share's weight has to be in
PAUSE_S = 0.5  # between a client's requests while an engine starts beside them: both have the same two cores
PATIENCE_S = 900.0  # for an engine on a machine that others use too
DROPPED = "2,3"
TRIES = 4
# Said, so that the nodes share none, and that a node does not end because an agent is slow to say its own.
AGENT_PORTS = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
UP = "This command will now block forever"  # `ray start --block`, once its node is there
Found = TypeVar("Found")


class ClaimError(Exception):
    """Something that is claimed does not hold."""


def claim(holds: bool, what: str) -> None:
    """Say what holds. Raises ClaimError where it does not."""
    if not holds:
        raise ClaimError(what)
    print(f"holds: {what}", flush=True)


def run(*words: str | Path) -> None:
    """Run a command to its end, quietly. Raises ClaimError with what it said where it fails."""
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClaimError(
            f"{' '.join(map(str, words))} ended with status {done.returncode}: {done.stderr or done.stdout}"
        )


def wait_for(what: str, look: Callable[[], Found | None]) -> Found:
    """Return what `look` finds, once that is something. Raises ClaimError where it takes too long."""
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE_S:
        if (found := look()) is not None:
            return found
        time.sleep(0.5)
    raise ClaimError(f"{what}: not within {PATIENCE_S:.0f} s")


@dataclass(frozen=True)
class Replica:
    """A replica as Ray says it."""

    pid: int
    node: str


class Cluster:
    """Two Ray nodes on this machine, and the application on them."""

    def __init__(self, scratch: Path) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._gcs, self._dashboard = free_port(), free_port()
        self._scratch = scratch
        self.nodes: list[ProcessGroup] = []

    def start(self) -> None:
        """Start both nodes, each with the one processor that an engine asks for."""
        common = [
            *(BIN / "ray", "start", "--block", "--num-cpus", 1, "--object-store-memory", 100_000_000),
            *("--min-worker-port", 0, "--max-worker-port", 0),
        ]
        head = ["--head", "--port", self._gcs, "--dashboard-port", self._dashboard, "--node-ip-address", "127.0.0.1"]
        self._start_node([*common, *head, "--temp-dir", self._scratch / "r"])
        self._start_node([*common, "--address", f"127.0.0.1:{self._gcs}"])

    def _start_node(self, words: list[Any]) -> None:
        """Start a node. Ray itself gives a node 30 s, which a busy machine may not keep, so it is tried again."""
        for left in reversed(range(TRIES)):
            log = self._scratch / f"node-{len(self.nodes)}.log"
            ports = [word for name in AGENT_PORTS for word in (f"--{name}-port", free_port())]
            node = ProcessGroup([str(word) for word in (*words, *ports)], log)
            self.nodes.append(node)
            if wait_for("a node is up or has ended", lambda node=node: _fate(node)) == UP:
                return
            node.stop()
            if not left:
                raise ClaimError(f"a node did not start: {node.last_lines()}")

    def deploy(self, folder: Path) -> None:
        """Deploy the folder's application as a user does, and wait until it runs."""
        run(BIN / "serve", "deploy", "--address", f"http://127.0.0.1:{self._dashboard}", folder / "serve.yaml")
        wait_for("the application runs", self._running)

    def _running(self) -> bool | None:
        application = self._application()
        if application.get("status") == "DEPLOY_FAILED":
            raise ClaimError(f"the application cannot be deployed: {application['message']}")
        return application.get("status") == "RUNNING" or None

    def _application(self) -> dict[str, Any]:
        said = self._get("/api/serve/applications/") or {}
        application: dict[str, Any] = said.get("applications", {}).get(EXPERIMENT, {})
        return application

    def _get(self, path: str) -> dict[str, Any] | None:
        token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self._dashboard}{path}", headers=token)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                said: dict[str, Any] = json.load(answer)
                return said
        except (OSError, ValueError):
            return None

    def replica(self, deployment: str) -> Replica | None:
        """Return the deployment's replica; None where none runs."""
        deployed = self._application().get("deployments", {}).get(deployment, {})
        for replica in deployed.get("replicas", []):
            if replica["state"] == "RUNNING":
                return Replica(replica["pid"], replica["node_id"])
        return None

    def engine(self, arm: str) -> psutil.Process:
        """Return the process that an arm's replica has started as its engine."""
        replica = wait_for(f"a replica of {arm}", lambda: self.replica(deployment_of(arm)))
        (engine,) = psutil.Process(replica.pid).children()
        return engine

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.stop()


@dataclass
class Tally:
    """What became of requests. arms: of the answers, by the header that names the arm.

    lost: failed before the answer had begun, with what the client was told. cut: failed behind that. streamed: answers
    that came in more than one part.
    """

    arms: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    cut: int = 0
    streamed: Counter[str] = field(default_factory=Counter)

    @property
    def answers(self) -> int:
        return sum(self.arms.values())

    def record(self) -> dict[str, Any]:
        return {
            "arms": dict(sorted(self.arms.items())),
            "reasons": dict(sorted(self.reasons.items())),
            "streamed": self.streamed.total(),
            "cut": self.cut,
            "lost": len(self.lost),
        }


async def ask(client: openai.AsyncOpenAI, tally: Tally, *, stream: bool, tokens: int) -> None:
    """Send a request, and note what becomes of it."""
    begun = False
    try:
        raw = await client.completions.with_raw_response.create(
            model=NAME, prompt="Once upon a time", max_tokens=tokens, temperature=0.0, stream=stream,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        begun = True
        arm = raw.headers["x-mi-prun-arm"]
        parts = 0
        answer = raw.parse()
        if stream:
            async for _ in answer:
                parts += 1
        tally.arms[arm] += 1
        tally.reasons[raw.headers["x-mi-prun-reason"]] += 1
        tally.streamed[arm] += parts > 1
    except (openai.OpenAIError, OSError) as error:
        if begun:
            tally.cut += 1
        else:
            tally.lost.append(" ".join(str(error).split())[:300])


@contextlib.asynccontextmanager
async def clients(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """One client, which tries nothing twice: a retry would hide a loss."""
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as one:
        yield one


async def shares(base_url: str) -> Tally:
    """Ask REQUESTS times, every fourth streamed."""
    tally = Tally()
    numbers = iter(range(REQUESTS))

    async def one_client(client: openai.AsyncOpenAI) -> None:
        for number in numbers:
            await ask(client, tally, stream=number % 4 == 0, tokens=4)

    async with clients(base_url) as client:
        await asyncio.gather(*(one_client(client) for _ in range(CLIENTS)))
    return tally


async def load(base_url: str, until: Callable[[], bool]) -> Tally:
    """Ask, every other request streamed, until something has happened."""
    tally = Tally()
    ended = asyncio.Event()

    async def one_client(client: openai.AsyncOpenAI) -> None:
        stream = False
        while not ended.is_set():
            stream = not stream
            await ask(client, tally, stream=stream, tokens=32)
            await asyncio.sleep(PAUSE_S)

    async def watch() -> None:
        try:
            await asyncio.to_thread(until)
        finally:
            ended.set()

    async with clients(base_url) as client, asyncio.TaskGroup() as group:
        group.create_task(watch())
        for _ in range(CLIENTS):
            group.create_task(one_client(client))
    return tally


def check_shares(tally: Tally, weights: dict[str, int]) -> None:
    claim(not tally.lost and not tally.cut, f"{tally.answers} of {REQUESTS} requests were answered whole {tally.lost}")
    share = weights["pruned"] / sum(weights.values())
    interval = binomtest(tally.arms["pruned"], tally.answers).proportion_ci(LEVEL)
    claim(
        interval.low <= share <= interval.high,
        f"pruned has weight {share:.1%}; its share was {tally.arms['pruned'] / tally.answers:.1%}, "
        f"{LEVEL:.1%} interval {interval.low:.1%} to {interval.high:.1%}",
    )
    # An engine that is slow on two cores fails over now and then. No request may have another reason.
    moved = tally.reasons["failover"]
    claim(
        tally.reasons["split"] + moved == tally.answers and moved <= MOST_MOVED * tally.answers,
        f"{tally.reasons['split']} were answered by the arm that they were drawn for, {moved} by failover",
    )
    claim(all(tally.streamed[arm] for arm in weights), "streams of both arms came in several parts")


def kill_under_load(cluster: Cluster, arm: str, victim: Callable[[], psutil.Process], what: str) -> Tally:
    """Kill a process of an arm while requests run, and wait for the arm's next replica to answer."""

    def kill_and_wait() -> bool:
        time.sleep(3)
        old = cluster.replica(deployment_of(arm))
        victim().send_signal(signal.SIGKILL)
        new = wait_for(f"{arm} is back", lambda: _another(cluster.replica(deployment_of(arm)), old))
        wait_for(f"{arm} answers again", lambda: _answered_by(cluster.base_url, arm))
        print(f"{what} of {arm} was killed; replica {new.pid} took the place of {old.pid if old else None}", flush=True)
        return True

    tally = asyncio.run(load(cluster.base_url, kill_and_wait))
    claim(
        not tally.lost,
        f"{what} of {arm} killed under load: {tally.answers} answers, {tally.reasons['failover']} of them by failover, "
        f"{tally.cut} cut off behind their first byte, {len(tally.lost)} lost {tally.lost[:2]}",
    )
    return tally


def _fate(node: ProcessGroup) -> str | None:
    """Return what has become of `ray start --block`; None while that is open."""
    if UP in node.log.read_text(errors="replace"):
        return UP
    return "ended" if node.process.poll() is not None else None


def _another(replica: Replica | None, old: Replica | None) -> Replica | None:
    return replica if replica is not None and replica != old else None


def _answered_by(base_url: str, arm: str) -> bool | None:
    """Ask once. An arm that was not its own choice does not count."""
    body = json.dumps({"model": NAME, "prompt": "Once", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{base_url}/v1/completions", body, {"Content-Type": "application/json"})
    with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return answer.headers["x-mi-prun-arm"] == arm or None
    return None


def export(cluster: Cluster, weights: dict[str, int]) -> Path:
    """Write the application with the project's own command."""
    split = ",".join(f"{arm}={weight}" for arm, weight in weights.items())
    run(
        *(sys.executable, "-m", "serve.ab.cli", "export", "--to", "ray-serve", "-o", WORK / "app", "--force"),
        *("--arm", f"dense={WORK / 'reference'}", "--arm", f"pruned={WORK / 'pruned'}", "--split", split),
        *("--model-name", NAME, "--experiment", EXPERIMENT, "--port", str(cluster.port)),
        *("--model-root", WORK, "--accelerator", "cpu"),
        *("--", "--max-model-len", "128", "--enforce-eager", "--max-num-seqs", "8"),
    )
    return WORK / "app"


def make_models() -> None:
    """Lay the models where the export says that every node has them."""
    WORK.mkdir(parents=True, exist_ok=True)
    if not (WORK / "reference").exists():
        (WORK / "reference").symlink_to(ROOT / "bench" / "reference")
    if not (WORK / "pruned" / "mi_prun.json").exists():
        run(
            *(sys.executable, "-m", "mi_prun", "prune", "bench/reference", "--drop", DROPPED),
            *("-o", WORK / "pruned", "--force"),
        )


def left() -> list[psutil.Process]:
    """Return all processes of this run but this one, whatever became of their parents."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(RUN) == os.environ[RUN]:
                found.append(process)
    return found


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster; at the end, however that comes, nothing of it is left."""
    scratch = Path(tempfile.mkdtemp(prefix="mpr-"))  # short: sockets lie in it
    os.environ["TMPDIR"] = str(scratch)  # what a killed process leaves goes with it
    cluster = Cluster(scratch)
    try:
        cluster.start()
        yield cluster
    except BaseException:
        for log in [*sorted(scratch.glob("node-*.log")), *scratch.glob("r/session_2*/logs/serve/*ingress*.log")]:
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        if os.environ.get("MI_PRUN_RAY_KEEP"):
            shutil.copytree(scratch, os.environ["MI_PRUN_RAY_KEEP"], dirs_exist_ok=True, symlinks=True,
                            ignore=shutil.ignore_patterns("sockets"))  # fmt: skip
        raise
    finally:
        cluster.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def check(cluster: Cluster) -> dict[str, Any]:
    """Check all claims on a cluster that runs."""
    cluster.deploy(export(cluster, BEFORE))
    replicas = {arm: cluster.replica(deployment_of(arm)) for arm in BEFORE}
    nodes = {replica.node for replica in replicas.values() if replica}
    claim(len(nodes) == len(BEFORE), f"the engines of {' and '.join(BEFORE)} run on {len(nodes)} nodes")
    before = asyncio.run(shares(cluster.base_url))
    check_shares(before, BEFORE)
    killed_engine = kill_under_load(cluster, "pruned", lambda: cluster.engine("pruned"), "the engine")
    killed_replica = kill_under_load(
        cluster, "dense", lambda: psutil.Process(cluster.engine("dense").ppid()), "the replica"
    )
    pids = {arm: cluster.engine(arm).pid for arm in BEFORE}
    proxy = cluster.replica(INGRESS)
    cluster.deploy(export(cluster, AFTER))
    after = asyncio.run(shares(cluster.base_url))
    check_shares(after, AFTER)
    claim(
        pids == {arm: cluster.engine(arm).pid for arm in BEFORE} and proxy == cluster.replica(INGRESS),
        "other weights started no engine anew, and no proxy",
    )
    return {
        "shares": {"before": before.record(), "after": after.record()},
        "killed": {"engine": killed_engine.record(), "replica": killed_replica.record()},
    }


def main() -> int:
    os.environ.update(local_addresses_direct())
    os.environ.update(
        {
            RUN: uuid.uuid4().hex,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex + uuid.uuid4().hex,
            "RAY_USAGE_STATS_ENABLED": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no process of its own for a single worker: half of the start
            "HF_HUB_OFFLINE": "1",
        }
    )
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit("ended by SIGTERM"))
    begin = time.monotonic()
    result: dict[str, Any] = {
        "ray": version("ray"), "vllm_cpu": version("vllm-cpu"), "openai": version("openai"),
        "python": platform.python_version(), "cores": os.cpu_count(),
    }  # fmt: skip
    try:
        make_models()
        with running_cluster() as cluster:
            result |= check(cluster)
        result["holds"] = True
    except ClaimError as error:
        print(f"error: {error}", file=sys.stderr)
        result["holds"] = False
    remaining = left()
    for process in remaining:
        print(f"error: still runs: {process}", file=sys.stderr)
        with contextlib.suppress(psutil.Error):
            process.kill()
    result |= {"left_running": len(remaining), "seconds": round(time.monotonic() - begin)}
    print(json.dumps(result))
    return 0 if result["holds"] and not remaining else 1


if __name__ == "__main__":
    sys.exit(main())
