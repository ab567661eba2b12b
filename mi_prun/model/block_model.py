"""A causal LM taken apart at its blocks: embed, run one block, read the logits off a boundary state.

Nothing is known here about a family but where its blocks are (`architecture.Family.block_prefix`). What else a block is
called with (masks, rotary embeddings) is what the model itself passes to it: it is recorded once per input shape, with
every block bypassed, and used again. Inputs are whole windows without padding, so it depends on the shape alone.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from mi_prun.architecture.architecture import Config, Family, family_of
from mi_prun.errors import UserError, first_line
from mi_prun.model.model_folder import ModelFolder, check_quantization_beside

Call = tuple[tuple[Any, ...], dict[str, Any]]

# What packed weights, and those in 8 bits, cannot be read without.
QUANTISED = re.compile(r"\.(weight_scale(_inv)?|weight_packed|weight_zero_point|qweight|qzeros|scales)\Z")
NO_CONFIG = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError)


class BlockModel:
    """Blocks are 0-based; boundary state i, of shape (batch, tokens, d), is the input of block i."""

    def __init__(self, model: nn.Module, block_prefix: str, *, returns_tuple: bool = False) -> None:
        self.model = model.eval()
        self._output: Callable[[Tensor], Any] = (lambda state: (state,)) if returns_tuple else (lambda state: state)
        self.blocks = cast("nn.ModuleList", model.get_submodule(block_prefix))
        self._calls: list[Call] = []

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        """d, the width of a boundary state."""
        return int(cast("Any", self.model).config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(cast("Any", self.model).config.get_text_config().vocab_size)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Boundary state 0 of `tokens` (batch, tokens)."""
        calls: list[Call] = []
        entry: list[Tensor] = []

        def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not entry:
                entry.append(hidden)
            calls.append((args, kwargs))
            return self._output(hidden)

        with self._forwards([record] * self.num_blocks):
            self.model(input_ids=tokens.to(self.device), use_cache=False, logits_to_keep=1)
        self._calls = calls
        return entry[0]

    def run(self, block: int, hidden: Tensor) -> Tensor:
        """Boundary state after `block`; `hidden` must come from the last batch given to `embed`."""
        args, kwargs = self._calls[block]
        return state_of(self.blocks[block](hidden, *args, **kwargs))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of the final boundary state, through the model's own norm and head."""

        def inject(state: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._output(hidden)

        tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        with self._forwards([*[self._skip] * (self.num_blocks - 1), inject]):
            return cast("Tensor", self.model(input_ids=tokens, use_cache=False).logits)

    @contextlib.contextmanager
    def without(self, dropped: Sequence[int]) -> Iterator[nn.Module]:
        """The model with the blocks `dropped` bypassed, for whoever needs the whole (generation, checks)."""
        with self._forwards([self._skip if block in dropped else None for block in range(self.num_blocks)]):
            yield self.model

    def _skip(self, state: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A block's `forward` that does nothing."""
        return self._output(state)

    @contextlib.contextmanager
    def _forwards(self, forwards: Sequence[Any]) -> Iterator[None]:
        """Set each block's `forward` (None: leave it), and take it back at the end."""
        changed = [
            (block, forward) for block, forward in zip(self.blocks, forwards, strict=True) if forward is not None
        ]
        try:
            for block, forward in changed:
                object.__setattr__(block, "forward", forward)
            yield
        finally:
            for block, _ in changed:
                object.__delattr__(block, "forward")


def state_of(output: Any) -> Tensor:
    """Some families return a tuple whose first entry is the state."""
    return cast("Tensor", output[0] if isinstance(output, tuple) else output)


def hooked_states(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> tuple[Tensor, Tensor]:
    """The boundary states before and after a block, of what its forward hook is given."""
    return cast("Tensor", args[0] if args else kwargs["hidden_states"]), state_of(output)


def pick_device(name: str | None = None) -> torch.device:
    """CUDA where there is one, else CPU; or the device named."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def pick_dtype(device: torch.device, name: str | None = None) -> torch.dtype:
    """bfloat16 on an accelerator, float32 on CPU (whose bf16 is slow and noisy on many machines)."""
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise UserError(f"--dtype must be one of {', '.join(dtypes)}, got {name!r}")
    return dtypes[name]


def load_block_model(folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> BlockModel:
    """Load a checked model folder through transformers (safetensors only, no remote code). Raises UserError where
    transformers would fill in weights that the files lack, or read quantised ones as if they were not.
    """
    check_quantization(folder)
    return loaded(family_of(folder.config), folder.path, dtype, device, use_safetensors=True, local_files_only=True)


def check_quantization(folder: ModelFolder) -> None:
    """Raises UserError for a quantisation that transformers would read past, taking packed numbers for weights."""
    check_quantization_beside(folder)
    found = folder.config.get("quantization_config")
    if not found:
        return
    from transformers.quantizers import AutoHfQuantizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        known = AutoHfQuantizer.supports_quant_method(found)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"model {folder.path}: quantization_config cannot be read: {first_line(error)}") from error
    if not known:
        raise UserError(
            f"model {folder.path}: transformers does not know the quantisation {found.get('quant_method')!r}, and "
            "would read its numbers as they are stored; prune first, then quantise"
        )


def free_accelerators() -> None:
    """Give back what this process holds on accelerators of models that it let go of: engines come next."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was not begun with


def load_on(folder: ModelFolder, device: str | None = None, dtype: str | None = None) -> BlockModel:
    """`load_block_model` on the device and in the dtype named; None: those that are picked."""
    place = pick_device(device)
    return load_block_model(folder, device=place, dtype=pick_dtype(place, dtype))


def loaded(
    family: Family,
    path: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    block: int | None = None,
    title: str | None = None,
    config: Config | None = None,
    **options: Any,
) -> BlockModel:
    """A model folder through transformers; or, with no path, the `state_dict` given under the `config` given, called
    `title`: the one block of that number, with what stands before the blocks where it is the first.
    """
    prefix = f"{family.block_prefix}."
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    named = title or f"model {path}"
    try:
        if config is not None:
            fields = {name: value for name, value in config.items() if name != "model_type"}
            options["config"] = AutoConfig.for_model(config["model_type"], **fields)
        model_class = AutoModelForCausalLM
        if path is None:  # the class of a config: `Auto` wants a folder
            model_class = AutoModelForCausalLM._model_mapping[type(options["config"])]
        model, report = model_class.from_pretrained(
            path, dtype=dtype, trust_remote_code=False, output_loading_info=True, **options
        )
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            model.set_attn_implementation("eager")  # the fused one does without the cap; vLLM does not
        model = model.to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{named} does not fit on {device} ({first_line(error)}); take --device cpu, or `mi-prun analyze "
            "--stream-blocks` and a plan that measures nothing (docs/selection.md)"
        ) from error
    except (*NO_CONFIG, RuntimeError) as error:
        raise UserError(f"{named} cannot be loaded by transformers: {first_line(error)}") from error

    def stored(name: str) -> str:
        return name if block is None else name.replace(f"{prefix}0.", f"{prefix}{block}.", 1)

    if scales := sorted(name for name in report["unexpected_keys"] if QUANTISED.search(name)):
        raise UserError(
            f"{named}: transformers reads its weights without {stored(scales[0])}, so not as they are meant; prune "
            "first, then quantise"
        )
    # Behind the first block the embedding is a stub, and filled in.
    if missing := sorted(name for name in report["missing_keys"] if not block or name.startswith(prefix)):
        why = "prune first, then quantise" if getattr(model, "hf_quantizer", None) is not None else "is it whole?"
        raise UserError(
            f"{named} lacks {len(missing)} tensors of its architecture, such as {stored(missing[0])}; {why}"
        )
    return BlockModel(model, family.block_prefix, returns_tuple=family.returns_tuple)


def load_tokenizer(folder: ModelFolder) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"model {folder.path} has no usable tokenizer: {first_line(error)}") from error


def context_tokens(folder: ModelFolder, *, cap: int = 2048) -> int:
    """Window length: the model's context, capped."""
    limit = _positions(folder)
    return min(cap, limit) if limit else cap


def check_window(folder: ModelFolder, window_tokens: int | None) -> None:
    """Refuse windows longer than the positions that the model has learned, where it learns them one by one."""
    if window_tokens is None or not family_of(folder.config).learned_positions:
        return
    limit = _positions(folder)
    if limit and window_tokens > limit:
        raise UserError(f"--window must be at most {limit}, the positions that {folder.name} has, got {window_tokens}")


def hidden_size(folder: ModelFolder) -> int:
    """d, the width of a boundary state, by the config alone."""
    return int(_text_config(folder).hidden_size)


def _positions(folder: ModelFolder) -> int | None:
    limit = getattr(_text_config(folder), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _text_config(folder: ModelFolder) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    except NO_CONFIG as error:
        raise UserError(
            f"model {folder.path} has a config that transformers does not read: {first_line(error)}"
        ) from error
    return config.get_text_config()
