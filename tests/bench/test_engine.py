"""The KV cache's size as the engine's /metrics tells it."""

from __future__ import annotations

import pytest

from bench.engine import kv_tokens
from mi_prun.errors import UserError

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0"}} 0.0
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="128",engine="0"{labels}}} 1.0
"""


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        (',kv_cache_size_tokens="349440",num_gpu_blocks="2730"', 349_440),
        (',num_gpu_blocks="10"', 1_280),  # releases before the token count was told
        (',kv_cache_size_tokens="None",num_gpu_blocks="10"', 1_280),
    ],
)
def test_tokens_of_the_kv_cache(labels: str, tokens: int) -> None:
    assert kv_tokens(PAGE.format(labels=labels)) == tokens


@pytest.mark.parametrize("page", ["", PAGE.format(labels=',num_gpu_blocks="None"')])
def test_an_engine_that_does_not_say(page: str) -> None:
    with pytest.raises(UserError, match="does not say how large its KV cache is"):
        kv_tokens(page)
