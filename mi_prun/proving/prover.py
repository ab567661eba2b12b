"""The proof of a family that no rule names, and its memory: each config is proved once in a process.

A tiny random model of transformers' own class is made, with the config's own fields about single blocks. The checkpoint
writer drops sets of blocks of it, and stock transformers reads each folder back. Its log-probabilities must be those of
the dense model whose blocks are bypassed. Else the family is refused, with what differed.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mi_prun.architecture.architecture import block_kinds
from mi_prun.architecture.family import Config, Family
from mi_prun.architecture.proof import Proof
from mi_prun.architecture.unlisted import assumed
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.console import progress, say
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.model.pretrained import library_errors
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.proving.candidate import candidate, class_of, known_config, unsupported, with_blocks
from mi_prun.proving.tiny_config import VOCABULARY, tiny_config, tiny_fields

TOLERANCE = 1e-5  # of a log-probability, float32 on a CPU
TOLD_APART = 1e-3  # what a dropped block must change, lest equality say nothing
TEXTS, LENGTH = 2, 24
MAX_PARAMETERS = 100_000_000
CPU = torch.device("cpu")

_keys: dict[str, str] = {}  # of each config that was asked for, the tiny config as text
_results: dict[str, tuple[Family, Proof] | UserError] = {}  # by the tiny config
_lock = threading.RLock()


def prove(config: Config, dropped: Sequence[int] = ()) -> tuple[Family, Proof]:
    """Return the family of a config that no rule names, and its proof.

    dropped: one more set of blocks (0-based) for the proof to drop.
    Raises UserError where transformers has no such model, the proof fails, or the config has code of its own.
    """
    with _lock:
        asked = json.dumps(config, sort_keys=True)
        if asked not in _keys:
            _keys[asked] = _tried(config)
        result = _results[_keys[asked]]
        if isinstance(result, UserError):
            raise UserError(str(result))
        wanted = tuple(sorted(dropped))
        if wanted and wanted not in result[1].dropped:
            result = _results[_keys[asked]] = _with_one_more(*result, json.loads(_keys[asked]), wanted)
        return result


def _tried(config: Config) -> str:
    """Prove a config, unless one with the same tiny config was proved before. Returns the tiny config as text."""
    family = candidate(config)  # looks at what the tiny config leaves out, too: code of its own
    with _refusing(family, "its sizes cannot be read"):
        fields = tiny_fields(config, known_config(config))
        tiny = tiny_config(config, fields)
    key = json.dumps(tiny, sort_keys=True)
    if key not in _results:
        try:
            _results[key] = _first_proof(family, tiny, fields)
        except UserError as error:
            _results[key] = error
    return key


def _first_proof(family: Family, tiny: Config, fields: dict[str, int | str | None]) -> tuple[Family, Proof]:
    import transformers

    begin = time.monotonic()
    say(f"{family.model_type}: no rule names this family; it is proved now on a tiny {family.architecture}")
    with _trial(family, tiny) as trial:
        sets = drops(trial.kinds)
        checks = (trial.check_order, trial.check_causal, trial.check_one_by_one)
        with progress(f"proving {family.model_type}", len(checks) + len(sets), "steps") as advance:
            for check in checks:
                check()
                advance(1)
            differences = []
            for dropped in sets:
                differences.append(trial.difference(dropped))
                advance(1)
        proof = Proof(
            model_class=trial.family.architecture,
            transformers_version=transformers.__version__,
            num_blocks=trial.model.num_blocks,
            num_parameters=sum(parameter.numel() for parameter in trial.model.model.parameters()),
            tiny_fields=fields,
            tokens=(TEXTS, LENGTH),
            dropped=sets,
            largest_difference=max(differences, default=0.0),
            tolerance=TOLERANCE,
        )
    say(f"{family.model_type}: {proof} ({time.monotonic() - begin:.1f} s)")
    return trial.family, proof


def _with_one_more(family: Family, proof: Proof, tiny: Config, dropped: tuple[int, ...]) -> tuple[Family, Proof]:
    with _trial(family, tiny) as trial:
        difference = max(proof.largest_difference, trial.difference(dropped))
    return family, proof.model_copy(update={"dropped": (*proof.dropped, dropped), "largest_difference": difference})


def drops(kinds: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the sets of blocks that a proof drops; each keeps a block.

    The first block (all others move up), the last one (another becomes the last), one of each kind, every other block,
    and all but one in the middle. What depends on a block's index, on the number of blocks or on a block before shows.
    """
    count = len(kinds)
    middle = count // 2
    sets = [
        (0,),
        (count - 1,),
        *((_one_of(kinds, kind),) for kind in dict.fromkeys(kinds)),
        tuple(range(0, count, 2)),
        tuple(range(1, count, 2)),
        tuple(range(count // 3, max(2 * count // 3, count // 3 + 1))),
        tuple(block for block in range(count) if block != middle),
    ]
    return tuple(dict.fromkeys(one for one in sets if 0 < len(one) < count))


def _one_of(kinds: Sequence[str], kind: str) -> int:
    """Return the block of a kind that is nearest to the middle."""
    return min(
        (block for block, one in enumerate(kinds) if one == kind), key=lambda block: abs(block - len(kinds) // 2)
    )


@dataclass(frozen=True)
class _Trial:
    """The tiny dense model: as a folder, and loaded. home: where pruned folders may be written."""

    family: Family
    folder: ModelFolder
    model: BlockModel
    kinds: tuple[str, ...]
    home: Path

    def check_order(self) -> None:
        """Refuse a model that does not hand one state from block to block, in their order, each block once."""
        calls: list[tuple[int, bool]] = []
        state: list[Tensor] = []

        def hook(block: int) -> Any:
            def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                entry = args[0] if args else kwargs.get("hidden_states")
                chained = not state or (isinstance(entry, Tensor) and torch.equal(entry, state[-1]))
                left = output[0] if isinstance(output, tuple) else output
                calls.append((block, chained and isinstance(left, Tensor)))
                state[:] = [left] if isinstance(left, Tensor) else []

            return record

        hooks = [
            block.register_forward_hook(hook(number), with_kwargs=True)
            for number, block in enumerate(self.model.blocks)
        ]
        try:
            self._log_p(self.model.model, _tokens())
        finally:
            for one in hooks:
                one.remove()
        if [block for block, _ in calls] != list(range(self.model.num_blocks)):
            self._refuse(f"its blocks run in the order {_shown([block for block, _ in calls])}")
        if changed := [block for block, chained in calls if not chained]:
            self._refuse(f"what reaches block {changed[0]} is not what the block before left")

    def check_causal(self) -> None:
        """Refuse a model whose earlier positions see later tokens."""
        tokens = _tokens()
        other = tokens.clone()
        other[:, -1] = (other[:, -1] + 1) % VOCABULARY
        before, after = (self._log_p(self.model.model, one)[:, :-1] for one in (tokens, other))
        if not _largest(before, after) <= TOLERANCE:
            self._refuse("it is no causal model: earlier positions see later tokens")

    def check_one_by_one(self) -> None:
        """Refuse a model that says something else where its blocks are run one by one, as an analysis runs them."""
        for dropped in ((), *drops(self.kinds)[:1]):
            with self._errors("it cannot be run block by block"), torch.inference_mode():
                state = self.model.embed(_tokens())
                for block in range(self.model.num_blocks):
                    if block not in dropped:
                        state = self.model.run(block, state)
                found = torch.log_softmax(self.model.logits(state).float(), -1)
            if not (differs := _largest(found, self._bypassed(dropped))) <= TOLERANCE:
                self._refuse(f"run block by block, it differs by {differs:.3g} in log-probability")

    def difference(self, dropped: Sequence[int]) -> float:
        """Return the largest difference of a log-probability between the written model and the bypassed one.

        Raises UserError where it is above the limit, or where the blocks made no difference at all.
        """
        from transformers import AutoModelForCausalLM

        identity = self.folder.identity
        kept = kept_blocks(identity.num_blocks, dropped)
        plan = Plan(dense=identity, dropped=tuple(dropped), kept=kept, method="proof")
        without = f"without {_named(dropped)}"
        with tempfile.TemporaryDirectory(dir=self.home) as home:
            out = Path(home) / "pruned"
            write_checkpoint(self.folder, plan, out, assume_uniform=True, quiet=True)
            with self._errors(f"{without}, it cannot be read back"):
                pruned = AutoModelForCausalLM.from_pretrained(
                    out,
                    dtype=torch.float32,
                    local_files_only=True,
                    trust_remote_code=False,
                    attn_implementation=cast("Any", self.model.model).config._attn_implementation,
                ).eval()
                found = self._log_p(pruned, _tokens())
        wanted = self._bypassed(dropped)
        if not (differs := _largest(found, wanted)) <= TOLERANCE:
            self._refuse(
                f"{without}, it differs by {differs:.3g} in log-probability (at most {TOLERANCE:g}) from the dense "
                "model with the same blocks bypassed"
            )
        if not _largest(wanted, self._bypassed(())) > TOLD_APART:
            self._refuse(f"{without}, it says what it says with all blocks, so nothing is shown")
        return differs

    def _bypassed(self, dropped: Sequence[int]) -> Tensor:
        with self.model.without(dropped) as model:
            return self._log_p(model, _tokens())

    def _log_p(self, model: Any, tokens: Tensor) -> Tensor:
        with self._errors("it cannot be run"), torch.inference_mode():
            return torch.log_softmax(model(input_ids=tokens, use_cache=False).logits.float(), -1)

    def _errors(self, what: str) -> contextlib.AbstractContextManager[None]:
        return _refusing(self.family, what)

    def _refuse(self, reason: str) -> None:
        raise _failed(self.family, reason)


def _failed(family: Family, reason: str) -> UserError:
    return unsupported(family.model_type, f"the proof on a tiny {family.architecture} failed: {reason}")


@contextlib.contextmanager
def _refusing(family: Family, what: str) -> Iterator[None]:
    """Turn every error inside into the refusal of a family."""
    try:
        with library_errors(what):
            yield
    except UserError as error:
        if str(error).startswith("model_type "):
            raise
        raise _failed(family, str(error)) from error


@contextlib.contextmanager
def _trial(family: Family, tiny: Config) -> Iterator[_Trial]:
    """Yield the tiny model of a config, loaded in float32 on the CPU, whatever the process computes with."""
    with (
        tempfile.TemporaryDirectory(prefix="mi-prun-proof-") as home,
        torch.random.fork_rng(devices=[]),
        _float32(),
        CPU,
    ):
        place = Path(home)
        found = _write_tiny(family, tiny, place / "dense")
        with assumed(found):
            with _refusing(family, "it cannot be read"):
                folder = open_model(place / "dense")
                model = load_block_model(folder, device=CPU, dtype=torch.float32)
            yield _Trial(found, folder, model, tuple(block_kinds(folder.config)), place)


def _write_tiny(family: Family, tiny: Config, out: Path) -> Family:
    """Write the tiny random model as a folder, and return the family with what its class tells."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model_class = class_of(tiny)
    with _refusing(family, "it cannot be made"):
        with torch.device("meta"):
            outline = model_class(known_config(tiny))
        size = sum(parameter.numel() for parameter in outline.parameters())
        if size > MAX_PARAMETERS:
            raise _failed(family, f"it would have {size:,} parameters, more than {MAX_PARAMETERS:,}")
        del outline
        torch.manual_seed(3)
        config = known_config(tiny)
        model = model_class(config).eval()
        randomise(model)
        found = with_blocks(family, model, config.num_hidden_layers)
        found = replace(found, returns_tuple=_returns_tuple(model, found))
        model.save_pretrained(out)
    # transformers writes every field that it knows; what is proved is the config as it came.
    (out / "config.json").write_text(json.dumps(tiny))
    return found


def _returns_tuple(model: Any, family: Family) -> bool:
    outputs: list[Any] = []
    block = model.get_submodule(f"{family.block_prefix}.0")
    hook = block.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.inference_mode():
        model(input_ids=_tokens(), use_cache=False)
    hook.remove()
    return isinstance(outputs[0], tuple) if outputs else False


def randomise(model: nn.Module) -> None:
    """Give a model weights so large that every block matters, and norms and biases that are not all alike."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else parameter + 0.1 * noise)


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)


def _tokens() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, VOCABULARY, (TEXTS, LENGTH), generator=generator)


def _largest(one: Tensor, other: Tensor) -> float:
    """Return the largest difference. It is not a number, and so within no limit, where one of the two is not."""
    return float((one - other).abs().max())


def _named(blocks: Sequence[int]) -> str:
    return f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {_shown(blocks)}"


def _shown(blocks: Sequence[int]) -> str:
    text = ", ".join(map(str, blocks[:8]))
    return text + (", ..." if len(blocks) > 8 else "")
