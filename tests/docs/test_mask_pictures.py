"""The pictures of masks are those of the masks."""

import re
from xml.etree import ElementTree

import pytest
import torch

from docs import make_mask_pictures, make_masks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", make_masks.named())
def test_a_picture_is_what_its_program_draws(name):
    example = make_masks.named()[name]
    written = (make_masks.HERE / make_masks.picture_of(name)).read_text()
    assert written == make_masks.picture(example), "run python -m docs.make_masks"


def test_every_picture_is_of_a_mask():
    files = {path.name for path in (make_masks.HERE / "pictures" / "masks").iterdir()}
    assert files == {f"{name}.svg" for name in make_masks.named()}


def test_a_picture_has_a_cell_for_each_visible_pair():
    dense = torch.tensor([[[[1, 1, 0], [0, 1, 1]], [[0, 0, 0], [1, 0, 1]]]]).bool()  # heads 2, queries 2, keys 3
    picture = ElementTree.fromstring(make_mask_pictures.drawn(dense, "two heads"))
    assert [text.text for text in picture.iter(f"{SVG}text")] == ["query", "key · head 0", "key · head 1"]
    seen = torch.zeros(2, 2, 3, dtype=torch.bool)
    for head, path in enumerate(picture.iter(f"{SVG}path")):
        for key, query, size in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path.get("d")):
            seen[head, int(query), int(key) : int(key) + int(size)] = True
    assert seen.equal(dense[0])
    assert picture.get("aria-label") == "two heads"


def test_at_most_three_tables_are_drawn():
    picture = make_mask_pictures.drawn(torch.ones(5, 1, 2, 3, dtype=torch.bool), "")
    assert picture.count("<rect") == 3 and "row 2" in picture and "row 3" not in picture
    assert "<path" not in make_mask_pictures.drawn(torch.zeros(1, 1, 2, 3, dtype=torch.bool), "nothing")
