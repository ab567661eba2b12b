"""The process: a port, the engines of the arms, the application on uvicorn, and their end."""

from __future__ import annotations

import logging

import uvicorn

from serve.ab.app import create_app
from serve.ab.arm import Arm
from serve.ab.config import Config
from serve.server import check_port

BACKLOG = 2048


def run(config: Config, *, reset: bool = False) -> None:
    """Until SIGTERM or Ctrl-C; what is in flight then has drain_s to end."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    check_port(config.host, config.port)
    arms = {name: Arm(name, arm, config.health) for name, arm in config.arms.items()}
    app = create_app(config, arms, reset=reset)
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=config.limits.connections,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=max(1, round(config.limits.drain_s)),
    )
