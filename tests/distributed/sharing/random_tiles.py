"""Tables of tiles at random: which key tiles each query tile needs."""

import torch


def needs(tiles: int, generator: torch.Generator) -> torch.Tensor:
    """bool (tiles, tiles): a band, a few others, and sometimes nothing at all for a query tile or from a key tile."""
    number = torch.arange(tiles)
    reach = torch.randint(tiles, (tiles,), generator=generator)[:, None]
    band = (number[:, None] >= number) & (number[:, None] - number <= reach)
    some = torch.rand(tiles, tiles, generator=generator) < 0.05
    kept = torch.rand(2, tiles, generator=generator) < 0.9
    return (band | some) & kept[0][:, None] & kept[1]
