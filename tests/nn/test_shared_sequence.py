"""The module by a plan: models on two processes equal one process's, alone, recomputed and wrapped."""

from tests.distributed import module_cases
from tests.distributed.processes import everywhere


def test_models_by_a_plan_equal_one_process(tmp_path):
    everywhere(
        2, tmp_path / "store", module_cases.all_of, "model_by_plan", "own_positions", "wrapped", "masks_as_inputs"
    )


def test_what_does_not_go_with_a_plan_is_named(tmp_path):
    alone = "with a plan, which is of one sequence that attends to itself, give no "
    assert everywhere(2, tmp_path / "store", module_cases.errors)[0] == {
        "context": f"{alone}context",
        "weights": f"{alone}need_weights",
        "offset": f"{alone}q_offset",
        "length": "x has the rows of one rank, (batch, 19, 12), as plan.shard makes them; got (2, 37, 12)",
        "pair": "with a plan positions are those of the rows, one tensor: there is no context",
    }


def test_a_compiled_model_takes_new_plans_without_compiling_anew(tmp_path):
    counts = everywhere(2, tmp_path / "store", module_cases.compiled)[0]
    assert counts[0] == counts[1] == counts[2] > 0
