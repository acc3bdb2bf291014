"""The example's step on packed sequences is its step on padded ones."""

import torch

from examples import packed_training


def test_packed_and_padded_have_one_loss_and_the_same_gradients(capsys):
    found = packed_training.main()
    torch.testing.assert_close(found["packed"][0], found["padded"][0], rtol=1e-5, atol=1e-5)
    assert len(found["packed"][1]) == 6  # the embedding, two projections and a bias, the head's two
    for packed, padded in zip(found["packed"][1], found["padded"][1], strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)
        assert packed.any()
    assert "packed: (1, 77), 100% of positions are tokens" in capsys.readouterr().out
