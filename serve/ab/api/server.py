"""The process: a port, the engines of the arms, the application on uvicorn, and their end."""

from __future__ import annotations

import gc
import logging
import resource
from pathlib import Path

import uvicorn

from mi_prun.errors import UserError
from serve.ab.api.app import create_app
from serve.ab.arms.arm import make_arms
from serve.ab.arms.served_name import with_model_name
from serve.ab.arms.supervisor import check_engines
from serve.ab.arms.supervisor_client import SupervisorClient
from serve.ab.config import Config
from serve.ab.proxy.security import OwnHosts, is_loopback, load_keys
from serve.ab.wire.protocol import bounded_protocol
from serve.scratch import scratch_folder
from serve.server import check_port

logger = logging.getLogger("mi_prun_ab")

BACKLOG = 2048


def run(config: Config, *, reset: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C; what is in flight then has drain_s to end. Raises UserError."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    check_port(config.host, config.port)
    keys = load_keys(config)
    if keys.open and not is_loopback(config.host):
        logger.warning("no API keys are set: whoever reaches %s:%d is a client", config.host, config.port)
    raise_open_files()
    if config.log_folder is not None and not config.log_folder.is_dir():
        raise UserError(f"--log-folder {config.log_folder}: no such folder; make it first")
    config = with_model_name(config)
    check_engines(config)
    arms = make_arms(config)
    with scratch_folder() as scratch, SupervisorClient(config, arms, Path(config.log_folder or scratch)) as engines:
        app = create_app(config, arms, keys=keys, reset=reset, on_start=engines.attach)
        engines.start()
        gc.collect()
        gc.freeze()  # what is there for good is not looked at again, in the middle of somebody's answer
        uvicorn.run(
            OwnHosts(app, config.cors_origins) if keys.open and is_loopback(config.host) else app,
            host=config.host,
            port=config.port,
            loop="uvloop",
            http=bounded_protocol(config.limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            limit_concurrency=config.limits.connections,
            timeout_keep_alive=round(config.limits.keep_alive_s),
            timeout_graceful_shutdown=max(1, round(config.limits.drain_s)),
        )


def raise_open_files() -> None:
    """Allow as many open files as the system lets us have: a stream takes two, and a shell's usual 1,024 are few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
