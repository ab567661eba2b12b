"""Run as a program: log-probabilities of given tokens, of folders opened with stock vLLM (no plugin), one by one.

python in_vllm.py ANSWER   takes jobs as lines of JSON on stdin, {"folder", "tokens", "options"}; options are further
ones of the engine. For each it prints a line, ANSWER and JSON: log p of each token but the first, per row. Other lines
are vLLM's. It ends with stdin, or with the first job that fails.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any


def log_p(folder: str, tokens: list[list[int]], options: dict[str, Any]) -> list[list[float]]:
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        enable_prefix_caching=False,
        **options,
    )
    wanted = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    found = engine.generate([{"prompt_token_ids": row} for row in tokens], wanted, use_tqdm=False)
    return [
        [answer.prompt_logprobs[place][token].logprob for place, token in enumerate(row) if place]
        for row, answer in zip(tokens, found, strict=True)
    ]


def main(answer: str) -> None:
    os.environ.update(
        VLLM_PLUGINS="",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        HF_HUB_OFFLINE="1",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    for line in sys.stdin:
        found = log_p(**json.loads(line))
        gc.collect()
        print(f"\n{answer}{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
