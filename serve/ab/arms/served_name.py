"""The name that the first arm serves its model under, asked at the start where no --model-name says it."""

from __future__ import annotations

import logging
import os
from typing import Any

from mi_prun.errors import UserError
from serve.ab.config import Config

logger = logging.getLogger("mi_prun_ab")

HINT = "say it by --model-name"


def with_model_name(config: Config) -> Config:
    """Return the config with a model name: its own, else the one that the first arm's /v1/models says.

    Raises UserError where the arm does not say exactly one.
    """
    if config.model_name:
        return config
    arm, target = next(iter(config.arms.items()))
    key = os.environ.get(target.api_key_env or "", "")
    url = f"{(target.url or '').rstrip('/')}/v1/models"
    try:
        names = _served_names(url, key, config.limits.connect_s)
    except ValueError as error:
        raise UserError(f"model_name is missing, and arm {arm} does not say it at {url} ({error}); {HINT}") from error
    if len(names) != 1:
        served = ", ".join(names) or "none"
        raise UserError(f"model_name is missing, and arm {arm} serves {len(names)} ({served}) at {url}; {HINT}")
    logger.info("clients ask for %s, which is what arm %s serves", names[0], arm)
    return config.with_model_name(names[0])


def _served_names(url: str, key: str, timeout_s: float) -> list[str]:
    """Return the names of models, without those of adapters. Raises ValueError with what is wrong."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(url, headers=headers, timeout=timeout_s, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if answer.status_code != 200:
        raise ValueError(f"status {answer.status_code}")
    try:
        listed: Any = answer.json()["data"]
        names = [model["id"] for model in listed if not model.get("parent")]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("its answer is no list of models") from error
    if not all(isinstance(name, str) for name in names):
        raise ValueError("its answer is no list of models")
    return names
