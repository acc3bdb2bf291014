"""What each operand of a mask costs."""

import pytest

import maskloom as loom
from maskloom.show.measure.operand_costs import in_words, operand_costs


@pytest.mark.parametrize("joined", [lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a ^ b])
def test_each_operand_alone_and_all_without_it(joined):
    first, second = loom.causal, loom.window(back=5, ahead=7)
    costs = operand_costs(joined(first, second), 110, 130, block_size=(10, 13))
    alone = [loom.blocks.density(loom.block_mask(mask, 110, 130, block_size=(10, 13))) for mask in (first, second)]
    assert [cost.alone for cost in costs] == alone
    assert [cost.without for cost in costs] == alone[::-1]
    assert [cost.mask for cost in costs] == [first, second]
    assert costs[0].operations < costs[1].operations


def test_words():
    assert operand_costs(loom.causal, 5, 7) == []
    text = in_words(operand_costs(loom.causal & loom.sinks(3), 5, 7, block_size=2))
    assert text.split("\n")[0].split("  ")[-1] == "visited without it"
    assert [line.split()[0] for line in text.split("\n")] == ["operand", "causal", "sinks(3)"]
