"""The files that come along with the weights: tokenizer, chat template, settings, licence, notices.

Only the files named here are copied. Optimizer states, logs, remote code and other formats of the weights stay behind,
and so do settings that state the dense number of blocks (`params.json`).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from mi_prun.errors import UserError
from mi_prun.model.weight_files import escapes

PATTERNS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "tiktoken.model", "*.spm", "spiece.model",
    "sentencepiece*.model", "tekken.json", "bpe.codes", "normalizer.json",
    "chat_template*.jinja", "chat_template*.json", "additional_chat_templates/*.jinja",
    "generation_config.json", "processor_config.json", "*preprocessor_config.json",
    "license*", "licence*", "notice*", "copying*", "*use_policy*", "*acceptable_use*",
)  # fmt: skip
NEVER = ("*.py", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.pkl")


def companions(folder: Path) -> list[str]:
    """Return the sorted names, relative to `folder`, of the files to copy.

    Raises UserError for a link that leads outside.
    """
    names = []
    for file in sorted((*folder.glob("*"), *folder.glob("additional_chat_templates/*"))):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and _comes_along(name):
            if escapes(file, folder):
                raise UserError(f"model {folder}: {name} is a link that leads outside the folder; refused")
            names.append(name)
    return names


def _comes_along(name: str) -> bool:
    low = name.lower()
    return any(fnmatchcase(low, pattern) for pattern in PATTERNS) and not any(fnmatchcase(low, bad) for bad in NEVER)
