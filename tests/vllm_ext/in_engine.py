"""Run as a program: engines in this process, one after the other; what they said, as lines of JSON.

python in_engine.py ANSWER   takes lists of jobs as lines of JSON on stdin, [{"model", "engine": {...}, "prompts":
token ids, "sampling": {...}}]. For each list it prints a line, ANSWER and JSON. Other lines are vLLM's. It ends with
stdin, or with the first job that fails.

A job may have several "calls", each of prompts and sampling, in their place; one that "fails" says with what error.
A call may name an "adapter", a folder. What loading it raises is in "refused", by the number of the call.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from itertools import chain
from typing import Any

QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
ENGINE = {
    "skip_tokenizer_init": True,
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 64,
    "enable_prefix_caching": False,
}


class Extension:
    """Methods of a worker, for `collective_rpc`."""

    model_runner: Any

    def draft_memory(self) -> dict[str, Any]:
        """What of the draft is not the target's."""
        from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

        target, drafter = self.model_runner.model, getattr(self.model_runner, "drafter", None)
        draft = self.get_draft_model() if drafter is None else drafter.model  # type: ignore[attr-defined]

        def storages(*models: Any) -> dict[int, int]:
            tensors = chain.from_iterable(chain(model.parameters(), model.buffers()) for model in models)
            return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}

        def caches(model: Any) -> dict[str, int]:
            layers = [module for module in model.modules() if isinstance(module, AttentionLayerBase)]
            return {layer.layer_name: layer.kv_cache.data_ptr() for layer in layers}  # type: ignore[attr-defined]

        shared = {id(module) for module in target.modules()}
        own = [module for module in draft.modules() if id(module) not in shared]
        return {
            "target_bytes": sum(storages(target).values()),
            "together_bytes": sum(storages(target, draft).values()),
            "own_leaves": sorted({type(m).__name__ for m in own if not list(m.children())}),
            "target_caches": caches(target),
            "draft_caches": caches(draft),
        }


def run(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    try:
        engine = LLM(job["model"], **(ENGINE | job.get("engine", {})))
    except Exception as error:
        if not job.get("fails"):
            raise
        return {"error": f"{type(error).__name__}: {error}"}
    calls, refused = [], {}
    for number, call in enumerate(job.get("calls", [job])):
        adapter = None
        if "adapter" in call:
            adapter = LoRARequest(f"adapter-{number}", number + 1, call["adapter"])
            try:
                engine.llm_engine.add_lora(adapter)
            except Exception as error:
                refused[number] = f"{type(error).__name__}: {error}"
                continue
        calls.append(
            engine.generate(
                [{"prompt_token_ids": row} for row in call["prompts"]],
                SamplingParams(**({"max_tokens": 1, "temperature": 0, "detokenize": False} | call["sampling"])),
                use_tqdm=False,
                lora_request=adapter,
            )
        )
    tokens = [[[list(output.token_ids) for output in answer.outputs] for answer in found] for found in calls]
    result: dict[str, Any] = {
        "calls": tokens,
        "tokens": tokens[0],
        "log_probs": log_probs(calls[0]),
        "log_probs_by_call": [log_probs(answers) for answers in calls],
        "refused": refused,
    }
    if job.get("memory"):
        result["memory"] = engine.collective_rpc("draft_memory")[0]
        result["metrics"] = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    del engine
    gc.collect()
    return result


def log_probs(answers: Any) -> list[list[float]]:
    """Return the log-probabilities of the prompt's tokens, answer by answer."""
    return [
        [
            place[token].logprob
            for token, place in zip(answer.prompt_token_ids, answer.prompt_logprobs or (), strict=False)
            if place
        ]
        for answer in answers
    ]


def record_meta() -> list[int]:
    """Bytes that each draft held before it was given the target's modules."""
    from vllm_ext import draft

    share, held = draft.share, []

    def recorded(model: Any, target: Any, kept: Any) -> None:
        theirs = {tensor.data_ptr() for tensor in target.buffers()}  # vLLM itself shares rotary embeddings
        tensors = chain(model.parameters(), model.buffers())
        held.append(sum(t.nbytes for t in tensors if not t.is_meta and t.data_ptr() not in theirs))
        share(model, target, kept)

    draft.share = recorded
    return held


def main(answer: str) -> None:
    os.environ.update(QUIET)
    held = record_meta()
    for line in sys.stdin:
        results = [run(job) for job in json.loads(line)]
        print(f"\n{answer}{json.dumps({'results': results, 'held': held})}", flush=True)
        held.clear()


if __name__ == "__main__":
    main(sys.argv[1])
