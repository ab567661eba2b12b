"""`mi-prun plan --for draft`: choose the blocks and the draft length with the best expected speed-up.

`draft_gain.py` has the formula. The chance a that a drafted token is accepted is measured on the ranking text, each
token drafted in the dense context. The cost c of a draft step is measured as the time of a step of one token through
the model's own blocks and head. Both leave out an engine's work around a step, and what n + 1 tokens cost over one in
the dense pass. So the figure is a bound for batch size 1, where reading the weights takes the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from mi_prun import console
from mi_prun.analysis.analysis import Analysis
from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.plan.plan import Plan
from mi_prun.plan.ratio import Amount, nearest
from mi_prun.planning.draft_gain import best_tokens, expected_speedup
from mi_prun.planning.planning import held_out_quality, make_context, make_plan
from mi_prun.quality.evaluator import Dropped, Evaluator
from mi_prun.settings import PlanSettings

RATIOS = (0.125, 0.25, 0.375, 0.5)  # tried where none is asked for
STEPS = 20  # timed, of which the median counts


@dataclass(frozen=True)
class Acceptance:
    """The chances that a drafted token is accepted, means over the predicted tokens.

    greedy: at temperature 0, the likeliest token is the same.
    sampled: at temperature 1 with a draft that samples, the sum over the vocabulary of min(dense, draft).
    """

    greedy: float
    sampled: float


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step of one token: in each block, and in what is around the blocks."""

    blocks_s: tuple[float, ...]
    rest_s: float

    def relative(self, dropped: Dropped) -> float:
        """Return c, the cost of a step without the blocks `dropped` over one with all blocks."""
        gone = sum(self.blocks_s[block] for block in dropped)
        total = sum(self.blocks_s) + self.rest_s
        return (total - gone) / total


@dataclass(frozen=True)
class DraftChoice:
    """A draft with its expected gain.

    tokens: drafted at a time. speedup: expected over the dense model alone, at temperature 0.
    """

    dropped: Dropped
    tokens: int
    acceptance: Acceptance
    relative_cost: float
    speedup: float

    def __str__(self) -> str:
        return (
            f"{len(self.dropped)} blocks dropped: accepts {self.acceptance.greedy:.1%} greedy, "
            f"{self.acceptance.sampled:.1%} sampled; a step costs {self.relative_cost:.2f} of the dense model's; "
            f"best with {self.tokens} tokens at a time: expected {self.speedup:.2f}x"
        )


@torch.inference_mode()
def measure_acceptance(evaluator: Evaluator, sets: Sequence[Dropped]) -> list[Acceptance]:
    """Measure each set's acceptance as the draft of the dense model, on the evaluator's windows."""
    sums = torch.zeros(len(sets), 2, dtype=torch.float64)
    with progress("acceptance", evaluator.windows.numel(), "tokens") as advance:
        for tokens in torch.split(evaluator.windows, evaluator.batch):
            for log_p, _, drafts in evaluator.log_probabilities(tokens, sets):
                p, likeliest = log_p.exp(), log_p.argmax(-1)
                for number, log_q in enumerate(drafts):
                    sums[number, 0] += float((log_q.argmax(-1) == likeliest).sum())
                    sums[number, 1] += float(torch.minimum(p, log_q.exp()).sum(dtype=torch.float64))
            advance(tokens.numel())
    return [Acceptance(*row) for row in (sums / evaluator.predicted_tokens).tolist()]


@torch.inference_mode()
def measure_step_cost(model: BlockModel) -> StepCost:
    """Time one token through each block, and through embedding, norm and head: medians of STEPS rounds."""
    token = torch.zeros(1, 1, dtype=torch.long)

    def clock() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter()

    blocks: list[list[float]] = [[] for _ in range(model.num_blocks)]
    rest: list[float] = []
    everything = tuple(range(model.num_blocks))
    for _ in range(STEPS):
        hidden = model.embed(token)
        for block, times in enumerate(blocks):
            start = clock()
            hidden = model.run(block, hidden)
            times.append(clock() - start)
        with model.without(everything) as bare:
            start = clock()
            bare(input_ids=token.to(model.device), use_cache=False)
            rest.append(clock() - start)
    return StepCost(tuple(map(median, blocks)), median(rest))


def choose_draft(sets: Sequence[Dropped], acceptances: Sequence[Acceptance], cost: StepCost) -> list[DraftChoice]:
    """Return each set with its best number of tokens, the best set first."""
    choices = []
    for dropped, acceptance in zip(sets, acceptances, strict=True):
        relative = cost.relative(dropped)
        tokens = best_tokens(acceptance.greedy, relative)
        speedup = expected_speedup(acceptance.greedy, relative, tokens)
        choices.append(DraftChoice(dropped, tokens, acceptance, relative, speedup))
    return sorted(choices, key=lambda choice: -choice.speedup)


def draft_for(analysis: Analysis, settings: PlanSettings, purpose: str, amount: Amount) -> Plan:
    """Return the plan for a draft, and print each ratio that was tried: all RATIOS if none is given."""
    if purpose != "draft":
        raise UserError(f"--for must be draft, got {purpose!r}")
    wanted = amount.blocks(analysis.record.dense) if amount != Amount() else ()
    if wanted != () and not isinstance(wanted, int):
        raise UserError(
            "--for draft chooses the blocks itself; give --ratio, --num-blocks or --param-ratio, or none of them"
        )
    return plan_draft(analysis, settings, [wanted] if isinstance(wanted, int) else (), print)


def plan_draft(
    analysis: Analysis, settings: PlanSettings, ks: Sequence[int], say: Callable[[DraftChoice], object]
) -> Plan:
    """Return the plan of the best draft among those that drop `ks` blocks; no `ks`: all RATIOS.

    say: called with each draft, the best first.
    Raises UserError if no draft is expected to be faster than the dense model alone and no `ks` are asked for.
    """
    count = analysis.num_blocks
    wanted = sorted({k for k in ks or (nearest(ratio, count) for ratio in RATIOS) if 1 <= k < count})
    context = make_context(analysis, settings)
    plans = {plan.dropped: plan for plan in (make_plan(context, k, replace(settings, quality=False)) for k in wanted)}
    sets = list(plans)
    choices = choose_draft(sets, measure_acceptance(context.ranking, sets), measure_step_cost(context.model))
    for choice in choices:
        say(choice)
    best = choices[0]
    if best.speedup <= 1.0:
        slow = (
            f"no draft pays: the best, {len(best.dropped)} of {count} blocks dropped and {best.tokens} tokens at a "
            f"time, is expected to reach {best.speedup:.2f}x; serve the dense model alone, or a pruned one"
        )
        if not ks:
            raise UserError(slow)
        console.say(slow)
    plan = plans[best.dropped]
    draft_settings: dict[str, str | int | float | bool | None] = {
        "for": "draft",
        "draft_tokens": best.tokens,
        "acceptance_greedy": round(best.acceptance.greedy, 4),
        "acceptance_sampled": round(best.acceptance.sampled, 4),
        "relative_cost": round(best.relative_cost, 4),
        "expected_speedup": round(best.speedup, 4),
    }
    quality = held_out_quality(context, plan.dropped) if settings.quality else None
    return plan.model_copy(update={"settings": plan.settings | draft_settings, "quality": quality})
