from __future__ import annotations

import pytest
import torch

from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.capitals import capitals
from mi_prun.recovery.choice_task import ChoiceTask, _chosen
from mi_prun.recovery.heal import asked_task
from mi_prun.recovery.shared_weights import SharedWeights


def test_the_right_choice_must_have_the_highest_score():
    assert _chosen([-3.0, -1.0, -2.0, -5.0, -4.0, -6.0], [(3, 1), (3, 0)]) == [True, False]


def test_items_are_asked_as_transformers_scores_them(reference):
    folder = open_model(reference)
    weights = SharedWeights(load_on(folder, "cpu"), (4, 5, 8), folder.family.block_prefix)
    task = ChoiceTask(weights, folder.tokenizer, items=3)
    dense, pruned = task.dense(), task.student()
    assert len(dense) == len(pruned) == len(task.items) == 3
    tokenizer = folder.tokenizer

    def right(item, dropped):
        scores = []
        with torch.no_grad(), weights.model.without(dropped) as model:
            for choice in item["choices"]:
                question = len(tokenizer(item["query"], add_special_tokens=False)["input_ids"])
                row = tokenizer(f"{item['query']} {choice}", add_special_tokens=False)["input_ids"]
                bos = tokenizer.bos_token_id
                whole = [bos, *row] if task._rows[0][0][0] == bos else row
                question += len(whole) - len(row)
                said = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
                scores.append(sum(float(said[at - 1, whole[at]]) for at in range(question, len(whole))))
        return scores.index(max(scores)) == item["gold"]

    assert dense == [right(item, ()) for item in task.items]
    assert pruned == [right(item, (4, 5, 8)) for item in task.items]


def test_what_is_recorded():
    asked = asked_task("capitals", [True, True, False], [False, True, False], [True, False, False])
    assert (asked.items, asked.dense_right, asked.pruned_right, asked.healed_right, asked.flips) == (3, 2, 1, 1, 2)


def test_items_have_one_right_answer_among_four():
    items = capitals()
    assert len(items) == 2 * 77
    assert all(len(set(item["choices"])) == 4 for item in items)
    assert next(item for item in items if "France" in item["query"])["choices"].count("Paris") == 1


def test_a_task_is_asked_of_the_dense_model_first(reference):
    folder = open_model(reference)
    weights = SharedWeights(load_on(folder, "cpu"), (4,), folder.family.block_prefix)
    with pytest.raises(ValueError, match="the dense model is asked first"):
        ChoiceTask(weights, folder.tokenizer, items=1).student()
