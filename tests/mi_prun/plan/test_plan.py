from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from mi_prun.errors import UserError
from mi_prun.model.identity import ModelIdentity
from mi_prun.plan.plan import Objective, Plan, kept_blocks

DENSE = ModelIdentity(
    name="a",
    model_type="llama",
    num_blocks=4,
    num_parameters=100,
    block_parameters=(10, 20, 30, 15),
    config_sha256="c",
    weights_sha256="w",
)


def plan(dropped: tuple[int, ...], kept: tuple[int, ...]) -> Plan:
    return Plan(dense=DENSE, dropped=dropped, kept=kept, method="m")


def test_ratios_in_blocks_and_parameters():
    made = plan((1, 3), (0, 2))
    assert made.block_ratio == 0.5
    assert made.parameters_dropped == 35
    assert made.parameter_ratio == 0.35


@pytest.mark.parametrize(
    ("dropped", "kept"),
    [((1,), (0, 2)), ((1, 2), (0, 2, 3)), ((3, 1), (0, 2)), ((1, 3), (2, 0)), ((0, 1, 2, 3), ()), ((4,), (0, 1, 2, 3))],
)
def test_blocks_that_do_not_add_up_are_refused(dropped, kept):
    with pytest.raises(ValidationError):
        plan(dropped, kept)


def test_a_plan_with_wrong_blocks_is_one_line(tmp_path):
    text = plan((1,), (0, 2, 3)).to_json().replace('"dropped": [\n    1\n  ]', '"dropped": [0]')
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan.json: field top level: .*must split the blocks 0\.\.3 in two"):
        Plan.read(tmp_path / "plan.json")


def test_it_belongs_to_one_model_under_any_name():
    made = plan((1,), (0, 2, 3))
    made.check_belongs_to(DENSE.model_copy(update={"name": "elsewhere"}))
    for field, which in (("config_sha256", "config"), ("weights_sha256", "weights")):
        with pytest.raises(UserError, match=f"{which} differ"):
            made.check_belongs_to(DENSE.model_copy(update={field: "x"}))


def test_round_trip(tmp_path):
    made = plan((1,), (0, 2, 3)).model_copy(
        update={"objective": Objective(chosen_nats=2.0, optimum_nats=1.5, optimum_dropped=(2,))}
    )
    made.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == made
    assert made.objective.gap_nats == 0.5
    assert made.objective.beside() == "least possible 1.5"


def test_a_plan_of_an_older_release_is_read(tmp_path):
    """It has no J of Fast-Block-Select."""
    objective = Objective(chosen_nats=2.0, optimum_nats=1.5, optimum_dropped=(2,), fbs_nats=1.75)
    made = plan((1,), (0, 2, 3)).model_copy(update={"objective": objective})
    assert objective.beside() == "Fast-Block-Select's 1.75, least possible 1.5"
    fields = json.loads(made.to_json())
    del fields["objective"]["fbs_nats"]
    (tmp_path / "plan.json").write_text(json.dumps(fields))
    read = Plan.read(tmp_path / "plan.json")
    assert read.objective.fbs_nats is None
    assert read.model_copy(update={"objective": objective}) == made


def test_kept_blocks():
    assert kept_blocks(5, (0, 3)) == (1, 2, 4)
