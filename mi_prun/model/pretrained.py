"""What transformers makes of a model folder's config and tokenizer. Each of its errors becomes one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mi_prun.architecture.architecture import Config
from mi_prun.errors import UserError, first_line


@contextlib.contextmanager
def library_errors(what: str, way_out: str = "") -> Iterator[None]:
    """Turn whatever transformers, tokenizers or safetensors raise into a UserError: `what: their first line; way_out`.

    All exceptions are caught: the libraries raise bare `Exception`, and tokenizers may panic, which is no `Exception`.
    """
    try:
        yield
    except BaseException as error:
        known = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if isinstance(error, UserError) or not known:
            raise
        raise UserError(f"{what}: {first_line(error)}" + (f"; {way_out}" if way_out else "")) from error


def pretrained_config(config: Config, what: str) -> Any:
    """Return transformers' own config object, made as `AutoConfig.from_pretrained` makes it from config.json.

    what: names the model in the error.
    """
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    logging.set_verbosity_error()
    fields: dict[str, Any] = special_floats(config)
    # AutoConfig does the same: a Mistral model that lists its blocks' attention is a Ministral model.
    if fields.get("model_type") == "mistral" and "layer_types" in fields and "ministral" in CONFIG_MAPPING:
        fields["model_type"] = "ministral"
    with library_errors(f"{what} cannot be loaded by transformers"):
        return CONFIG_MAPPING[fields["model_type"]].from_dict(fields)


def special_floats(value: Any) -> Any:
    """Return a config's value with infinities and NaN in place of what transformers writes for them.

    JSON has none, so config.json holds `{"__float__": "Infinity"}`.
    """
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {name: special_floats(inner) for name, inner in value.items()}
    return [special_floats(inner) for inner in value] if isinstance(value, list) else value


def pretrained_tokenizer(path: Path, config: Any) -> Any:
    """Return the tokenizer of the folder `path`, whose config object is `config`. No remote code is run.

    Raises UserError if there is none, if it cannot be read, or if its vocabulary is empty.
    """
    import tokenizers
    import transformers

    what = f"model {path} has no usable tokenizer"
    way_out = (
        "tokenizer.json and tokenizer_config.json must be the model's own, and readable by "
        f"transformers {transformers.__version__} with tokenizers {tokenizers.__version__}"
    )
    with library_errors(what, way_out):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            path, config=config, trust_remote_code=False, local_files_only=True
        )
        words = len(tokenizer) - len(set(tokenizer.all_special_ids))
        tokenizer("a")  # some wrong settings are not looked at before a text is
    if words <= 0:  # transformers makes an empty tokenizer where only its settings are there
        raise UserError(f"{what}: its vocabulary is empty; {way_out}")
    return tokenizer
