"""Run as a program: log-probabilities of given tokens, from a folder opened with stock vLLM (no plugin).

python in_vllm.py FOLDER TOKENS.json OPTIONS   prints, as its last line, JSON: log p of each token but the first, per
row. OPTIONS is a JSON object: further options of the engine.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(folder: str, tokens: list[list[int]], options: dict[str, Any]) -> list[list[float]]:
    os.environ.update(
        VLLM_PLUGINS="",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        HF_HUB_OFFLINE="1",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
    )
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


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), json.loads(sys.argv[3]))))
