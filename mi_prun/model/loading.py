"""A checked model folder in memory: device and dtype, and weights that are read from the folder's own shards only.

transformers builds the model, but does not look for files: it is given the tensors of `ModelFolder.shards`, unread, and
reads each from its mapped file when its turn comes. So what is measured is what is digested and written.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from mi_prun.architecture.architecture import Family
from mi_prun.errors import UserError, first_line
from mi_prun.model.block_model import BlockModel
from mi_prun.model.model_folder import ModelFolder, check_quantization_beside
from mi_prun.model.pretrained import library_errors

# Tensors without which packed or 8-bit weights cannot be read.
QUANTISED = re.compile(r"\.(weight_scale(_inv)?|weight_packed|weight_zero_point|qweight|qzeros|scales)\Z")


def pick_device(name: str | None = None) -> torch.device:
    """Return the device named; without a name CUDA if there is one, else CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a GPU, else in this machine. In a container its limit is not seen."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def pick_dtype(device: torch.device, name: str | None = None) -> torch.dtype:
    """Return the dtype named; without a name bfloat16 on an accelerator, float32 on CPU.

    bfloat16 is slow on many CPUs, and less exact.
    """
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise UserError(f"--dtype must be one of {', '.join(dtypes)}, got {name!r}")
    return dtypes[name]


def multiplies_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 faster than float32: by AMX, or an AMD by AVX512_BF16.

    Intel's AVX512_BF16 has half the rate of its float32: a Xeon whose host hides AMX does 150 against 250 GFLOP/s.
    """
    has = _capabilities()
    by_vectors = has.get("avx512_bf16") and not str(has.get("cpu_name", "")).startswith("Intel")
    return bool(has.get("amx_bf16") or by_vectors)


def lacks_bfloat16() -> bool:
    """Tell whether this processor has no fast product of bfloat16: x86 without AVX-512. Torch then takes six times as
    long for one as in float32.
    """
    has = _capabilities()
    return has.get("architecture") == "x86_64" and not has.get("avx512_f")


def _capabilities() -> dict[str, Any]:
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not say
    return has


def load_on(folder: ModelFolder, device: str | None = None, dtype: str | None = None) -> BlockModel:
    """Load a model on the device and in the dtype named; None: those that `pick_device` and `pick_dtype` pick."""
    place = pick_device(device)
    return load_block_model(folder, device=place, dtype=pick_dtype(place, dtype))


def load_block_model(folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> BlockModel:
    """Load a checked model folder through transformers.

    Raises UserError where transformers would make up weights that the files lack, or misread quantised ones.
    """
    from safetensors import safe_open

    check_quantization(folder)
    title = f"model {folder.path}"
    with contextlib.ExitStack() as stack, library_errors(f"{title} cannot be loaded by transformers"):
        tensors: dict[str, Any] = {}
        for shard in folder.shards:
            file = stack.enter_context(safe_open(shard.path, framework="pt"))
            tensors |= {name: file.get_slice(name) for name in shard.tensors}
        return load_tensors(tensors, folder.family, folder.pretrained_config, dtype, device, title=title)


def load_tensors(
    tensors: Mapping[str, Any],
    family: Family,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    *,
    title: str,
    block: int | None = None,
) -> BlockModel:
    """Build a model of transformers' `config` and fill it with `tensors`, or with slices of a safetensors file.

    title: names the model in errors.
    block: the number in the dense model of the one block that the model has; None: it has all blocks.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with library_errors(f"{title} cannot be loaded by transformers"):
        try:
            model_class = AutoModelForCausalLM._model_mapping[type(config)]  # `Auto` itself wants a folder
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
            )
            if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
                model.set_attn_implementation("eager")  # the fused one leaves out the cap; vLLM does not
            model = model.to(device)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{title} does not fit on {device} ({first_line(error)}); take --device cpu, or `mi-prun analyze "
                "--stream-blocks` and a plan that measures nothing (docs/how-to/prune-a-model-larger-than-memory.md)"
            ) from error
        except AssertionError:
            _check_padding(config, title)
            raise
    _check_report(report, family, title, block, quantised=getattr(model, "hf_quantizer", None) is not None)
    with library_errors(f"{title} cannot be run by transformers"), torch.inference_mode():
        # Fields that contradict each other are not all looked at before a model runs.
        model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device), use_cache=False)
    return BlockModel(model, family.block_prefix, returns_tuple=family.returns_tuple)


def _check_padding(config: Any, title: str) -> None:
    """Refuse a padding id without a row, which torch refuses if the model's embedding has a padding row."""
    text = config.get_text_config()
    padding, rows = text.pad_token_id, text.vocab_size
    if isinstance(padding, int) and not -rows <= padding < rows:
        raise UserError(
            f"{title}: pad_token_id {padding} of config.json is past the vocabulary: the embedding has {rows} rows "
            f"(0..{rows - 1}); set pad_token_id to null or to a token that has a row"
        )


def _check_report(report: Mapping[str, Any], family: Family, title: str, block: int | None, *, quantised: bool) -> None:
    """Refuse a model of which transformers left out scales, or made up weights: of other shapes, or missing ones."""
    prefix = f"{family.block_prefix}."

    def stored(name: str) -> str:
        return name if block is None else name.replace(f"{prefix}0.", f"{prefix}{block}.", 1)

    if scales := sorted(name for name in report["unexpected_keys"] if QUANTISED.search(name)):
        raise UserError(
            f"{title}: transformers reads its weights without {stored(scales[0])}, so not as they are meant; prune "
            "first, then quantise"
        )
    if shapes := sorted(report["mismatched_keys"]):
        name, there, wanted = shapes[0]
        raise UserError(
            f"{title}: tensor {stored(name)} has the shape {list(there)} in the files, and {list(wanted)} by "
            "config.json; the two are not of one model"
        )
    # Behind the first block the embedding is a stub, and filled in.
    if missing := sorted(name for name in report["missing_keys"] if not block or name.startswith(prefix)):
        why = "prune first, then quantise" if quantised else "is it whole?"
        raise UserError(
            f"{title} lacks {len(missing)} tensors of its architecture, such as {stored(missing[0])}; {why}"
        )


def check_quantization(folder: ModelFolder) -> None:
    """Refuse a quantisation that transformers does not know: it would take packed numbers for weights."""
    check_quantization_beside(folder)
    quantization = folder.config.get("quantization_config")
    if not quantization:
        return
    from transformers.quantizers import AutoHfQuantizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    with library_errors(f"model {folder.path}: quantization_config cannot be read"):
        known = AutoHfQuantizer.supports_quant_method(quantization)
    if not known:
        raise UserError(
            f"model {folder.path}: transformers does not know the quantisation {quantization.get('quant_method')!r}, "
            "and would read its numbers as they are stored; prune first, then quantise"
        )


def free_accelerators() -> None:
    """Give back the accelerator memory of models that this process let go of: engines come next."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was not begun with
