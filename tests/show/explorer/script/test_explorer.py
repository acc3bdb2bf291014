import base64
import io
import json
import re

import numpy as np
import pytest
import torch

import maskloom as loom
from tests.show.explorer.browser import needs_chromium, opened
from tests.show.explorer.test_page import HOSTILE

pytestmark = needs_chromium

LIGHT = {"hidden": (233, 237, 240), "partial": (240, 166, 48), "visible": (23, 64, 109)}
DARK = {"hidden": (45, 51, 59), "visible": (159, 208, 255)}


@pytest.fixture(scope="module")
def tab():
    with opened() as found:
        yield found


@pytest.fixture(autouse=True)
def quiet(tab):
    """No test leaves an error in the console, and no page asks for another file."""
    yield
    assert tab.said == []
    assert [address for address in tab.requests if not address.startswith(("file:", "data:", "about:"))] == []
    assert len(tab.requests) <= 1


@pytest.fixture
def show(tab, tmp_path):
    """Open a page of a mask."""

    def opening(*args, link="", size=(1000, 700), dark=False, **options):
        path = loom.show.page(*args, path=tmp_path / "mask.html", **options)
        tab.open(path.as_uri() + link, size=size, dark=dark)
        return tab

    return opening


def explorer(tab, expression):
    """A value of the explorer; ``x`` is the explorer itself."""
    return tab.run(f"((x) => {expression})(window.held)")


def catch(tab):
    """Keep the explorer of the page that is opened next."""
    tab.ask(
        "Page.addScriptToEvaluateOnNewDocument",
        source="addEventListener('maskloom-explorer', (event) => { window.held = event.detail; })",
    )


@pytest.fixture(scope="module", autouse=True)
def caught(tab):
    catch(tab)


def pixels(tab):
    """The canvas: uint8 (height, width, 3)."""
    from matplotlib.image import imread

    text = tab.run("document.querySelector('canvas').toDataURL('image/png')")
    found = imread(io.BytesIO(base64.b64decode(text.partition(",")[2])), format="png")
    return (found[..., :3] * 255).round().astype(np.uint8)


def place_of(tab, query, key):
    """The middle of a pair on the screen."""
    return tab.run(
        "((x) => { const box = x.canvas.getBoundingClientRect(); return [box.left + x.painter.left + "
        f"x.view.pixelOf({key} + 0.5, 1), box.top + x.painter.top + x.view.pixelOf({query} + 0.5, 0)]; }})(window.held)"
    )


def shown(tab, mask_of_colours=LIGHT):
    """The pairs that are drawn as visible: bool (Q, K); every pair has the colour of a visible or of a hidden one."""
    image = pixels(tab)
    rows, columns = (
        tab.run(
            f"Array.from({{length: held.model.sizes[{axis}]}}, (_, at) => held.painter.{side} + "
            f"held.view.pixelOf(at + 0.5, {axis}))"
        )
        for axis, side in ((0, "top"), (1, "left"))
    )
    found = image[np.round(rows).astype(int)][:, np.round(columns).astype(int)]
    visible = (found == mask_of_colours["visible"]).all(-1)
    assert (visible | (found == mask_of_colours["hidden"]).all(-1)).all()
    return torch.tensor(visible)


def text(tab, selector):
    return tab.run(f"document.querySelector({json.dumps(selector)}).innerText")


def facts(tab):
    return re.sub(r"\s+", " ", text(tab, ".pair"))


def operands(tab):
    """For each operand what is said of it."""
    return tab.run("[...document.querySelectorAll('.operands li .told')].map((one) => one.innerText.trim())")


MASK = loom.causal & loom.window(back=5) | loom.sinks(2)


def test_elements_are_drawn(show):
    tab = show(MASK, 17)
    assert torch.equal(shown(tab), MASK.dense(17, 17)[0, 0])
    assert torch.equal(shown(show(MASK, 17, dark=True), DARK), MASK.dense(17, 17)[0, 0])
    assert text(tab, "h1") == "causal & window(back=5, ahead=0) | sinks(2)"
    assert text(tab, "header p") == "17 queries × 17 keys"


def test_the_pointer_tells_of_a_pair(show):
    tokens = [f"word{place}" for place in range(13)]
    tab = show(loom.causal & loom.documents(offsets=[0, 5, 13]) | loom.sinks(2), tokens=tokens)
    tab.mouse("mouseMoved", *place_of(tab, 7, 3))
    assert facts(tab) == (
        "query 7 “word7” document 1 key 3 “word3” document 0 this pair is hidden its tile is partial, row 0, column 0"
    )
    assert operands(tab) == ["visible", "decides\nhidden", "decides\nhidden"]
    tab.mouse("mouseMoved", *place_of(tab, 7, 6))
    assert "this pair is visible" in facts(tab)
    assert operands(tab) == ["decides\nvisible", "decides\nvisible", "hidden"]
    tab.mouse("mouseMoved", 5, 5)
    assert facts(tab) == "Point at the picture, or press an arrow key."


def test_the_keyboard_moves_a_cursor_and_the_view(show):
    tab = show(MASK, 300, link="#at=100.90&z=20&q=100&k=90")
    tab.run("document.querySelector('canvas').focus()")
    assert facts(tab).startswith("query 100 key 90")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        tab.key(key)
    assert facts(tab).startswith("query 102 key 91")
    before = tab.run("held.view.middle")
    tab.key("ArrowDown", shift=True)
    after = tab.run("held.view.middle")
    assert after[0] > before[0] + 3 and after[1] == before[1]
    scale = tab.run("held.view.scale")
    tab.key("-")
    assert tab.run("held.view.scale") == pytest.approx(scale / 1.5)
    tab.key("+")
    assert tab.run("held.view.scale") == pytest.approx(scale)
    tab.key("0")
    assert tab.run("held.view.isWhole")
    tab.key("Escape")
    assert facts(tab).startswith("Point at")


def test_the_wheel_zooms_where_the_pointer_is(show):
    tab = show(loom.causal, 131_072)
    x, y = place_of(tab, 70_000, 60_000)
    for _ in range(18):
        tab.ask("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-240)
    tab.settle()
    assert tab.run("held.view.pixels") == [48, 48]
    tab.mouse("mouseMoved", x, y)
    query, key = tab.run("held.cursor")
    assert abs(query - 70_000) <= 400 and abs(key - 60_000) <= 400  # two pixels
    assert "visible" in facts(tab)
    found = pixels(tab)
    assert (found == LIGHT["visible"]).all(-1).mean() > 0.5
    tab.click(*tab.run("(() => { const box = [...document.querySelectorAll('button')].find((one) => "
                       "one.innerText === 'All').getBoundingClientRect(); return [box.x + 9, box.y + 9]; })()"))  # fmt: skip
    assert tab.run("held.view.isWhole")


def test_dragging_moves_and_a_click_holds(show):
    tab = show(loom.causal, 3000, link="#z=4&q=1000&k=1000")
    x, y = place_of(tab, 1000, 1000)
    tab.mouse("mousePressed", x, y, button="left", clickCount=1)
    tab.mouse("mouseMoved", x - 40, y - 80, button="left")
    tab.mouse("mouseReleased", x - 40, y - 80, button="left", clickCount=1)
    assert tab.run("held.view.middle") == pytest.approx([1020, 1010])
    assert tab.run("held.held") is None
    tab.click(*place_of(tab, 1019, 1005))
    tab.mouse("mouseMoved", *place_of(tab, 1050, 1050))
    assert facts(tab).startswith("query 1019 key 1005")


def switch(tab, leaf):
    tab.run(f"document.querySelectorAll('.operands input')[{leaf}].click()")
    tab.settle()


def test_an_operand_is_switched_off_and_on_again(show):
    tab = show(MASK, 17)
    for leaf, left in ((1, loom.causal | loom.sinks(2)), (0, loom.sinks(2)), (2, loom.everything)):
        switch(tab, leaf)
        assert torch.equal(shown(tab), left.dense(17, 17)[0, 0])
    assert "No operand is on: nothing is hidden." in text(tab, ".legend + .note")
    for leaf in range(3):
        switch(tab, leaf)
    assert torch.equal(shown(tab), MASK.dense(17, 17)[0, 0])


def test_cells_of_a_long_mask_follow_a_switch(show):
    mask = loom.causal & loom.window(back=2000) & loom.documents(offsets=[0, 5000, 30_000, 32_768])
    tab = show(mask, 32_768)
    switch(tab, 1)
    levels = torch.tensor(tab.run("Array.from(held.reader.cells.levels)")).view(1024, 1024)
    blocks = loom.block_mask(loom.causal & mask.parts[2], 32_768, 32_768, block_size=32)
    assert torch.equal(levels == 0, states(blocks) == 0)
    assert torch.equal(levels == 15, states(blocks) == 2)


def states(block_mask):
    from maskloom.blocks.tile_states import tile_states

    return tile_states(block_mask)[0, 0]


def test_tiles_are_drawn_with_their_states(show):
    mask = loom.causal & loom.window(back=300)
    tab = show(mask, 1000, link="#layer=tiles")
    found = torch.tensor(tab.run("Array.from(held.reader.cells.tiles().state)")).view(8, 8)
    assert torch.equal(found, states(loom.block_mask(mask, 1000, 1000)).long())
    x, y = place_of(tab, 500, 500)
    tab.mouse("mouseMoved", x, y)
    assert "its tile is partial, row 3, column 3" in facts(tab)
    tab.mouse("mouseMoved", *place_of(tab, 500, 380))
    assert "its tile is full, row 3, column 2" in facts(tab) or "its tile is partial" in facts(tab)
    colours = {tuple(colour) for colour in pixels(tab)[100:600:7, 100:600:7].reshape(-1, 3).tolist()}
    assert {LIGHT["partial"], LIGHT["visible"], LIGHT["hidden"]} <= colours


def test_the_tiles_of_a_block_mask_are_those_of_its_tables(show):
    blocks = loom.block_mask(loom.everything & loom.window(back=10_000, ahead=10_000), 300, 384)
    hand_made = type(blocks).from_kv_blocks(
        torch.tensor([[[2, 1, 0]]]), torch.tensor([[[[0, 2, 1], [1, 0, 2], [0, 1, 2]]]]), None, None, 128, blocks.mask_mod,
        (300, 384),
    )  # fmt: skip
    for given in (blocks, hand_made):
        tab = show(given, link="#layer=tiles")
        found = torch.tensor(tab.run("Array.from(held.reader.cells.tiles().state)")).view(3, 3)
        assert torch.equal(found, states(given).long())
    tab.mouse("mouseMoved", *place_of(tab, 140, 140))
    assert "this pair is visible its tile is partial, row 1, column 1" in facts(tab)
    assert operands(tab)[0] == "decides\nvisible"
    tab.mouse("mouseMoved", *place_of(tab, 290, 140))
    assert "this pair is hidden its tile is empty" in facts(tab)


def test_batch_rows_and_heads_are_chosen(show):
    table = torch.rand(2, 3, 11, 13, generator=torch.Generator().manual_seed(0)) < 0.5
    tab = show(loom.masks.from_dense(table), 11, 13)
    for row, head in ((0, 0), (1, 0), (1, 2)):
        for place, value in enumerate((row, head)):
            tab.run(
                f"(() => {{ const one = document.querySelectorAll('select')[{place}]; one.value = '{value}'; "
                "one.dispatchEvent(new Event('change')); })()"
            )
        tab.settle()
        assert torch.equal(shown(tab), table[row, head])
    assert text(tab, ".member").startswith("batch row")
    tab = show(loom.masks.from_dense(table), 11, 13, link="#b=1&h=1")
    assert torch.equal(shown(tab), table[1, 1])


def test_a_link_leads_to_the_same_picture(show):
    tab = show(MASK, 300, link="#q=150&k=120&z=12&off=1&at=151.120")
    tab.run("new Promise((done) => setTimeout(done, 300)).then(() => null)")
    assert tab.run("location.hash") == "#q=150.00&k=120.00&z=12&off=1&at=151.120"
    assert tab.run("[...held.reader.off]") == [1] and facts(tab).startswith("query 151 key 120")
    for wrong in ("#q=x&k=&z=-3&off=9.a&b=7&h=-1&at=999.0&layer=none", "#%00%ff", "#z=1e99&q=1e99&k=-1e99"):
        tab = show(MASK, 13, link=wrong)
        assert tab.run("held.reader.off.size") == 0 and tab.run("held.layer") == "mask"


def test_weights_are_a_layer(show):
    mask = loom.causal & loom.lengths([13, 7])
    weights = torch.rand(2, 3, 13, 13, generator=torch.Generator().manual_seed(0))
    weights[1, 2, 5, 3], weights[1, 2, 5, 4] = 0.25, float("nan")
    tab = show(mask, scores=weights, link="#layer=attention&b=1&h=2")
    tab.mouse("mouseMoved", *place_of(tab, 5, 3))
    assert facts(tab).endswith("attention 0.25")
    tab.mouse("mouseMoved", *place_of(tab, 5, 4))
    assert facts(tab).endswith("attention not finite")
    tab.mouse("mouseMoved", 5, 5)
    image = pixels(tab)
    x, y = (round(at) for at in place_of(tab, 9, 3))
    top, left = tab.run("(() => { const box = held.canvas.getBoundingClientRect(); return [box.top, box.left]; })()")
    assert tuple(image[round(y - top), round(x - left)]) == LIGHT["hidden"]
    x, y = (round(at) for at in place_of(tab, 5, 4))
    assert tuple(image[round(y - top), round(x - left)]) == (216, 27, 96)
    assert text(tab, ".legend").startswith("0")


def test_hostile_tokens_do_nothing_and_are_seen(show):
    tokens = [*HOSTILE, "\nline", " blank "]
    tab = show(loom.causal, tokens=tokens, title="</h1><img src=x onerror=alert(1)>\u202e")
    assert tab.run("document.images.length") == 0 and tab.run("document.scripts.length") == 2
    assert text(tab, "h1") == "</h1><img src=x onerror=alert(1)>⟨202E⟩"
    found = []
    for place in range(len(tokens)):
        tab.mouse("mouseMoved", *place_of(tab, place, 0))
        found.append(text(tab, ".pair .part1"))
    assert found == [
        "“</script><script>alert(1)</script>”", "“<img src=x onerror=alert(1)>”", "“⟨2028⟩⟨2029⟩”", "“␀”", "“⟨D800⟩”",
        "“⟨202E⟩abc”", "“a&amp;b”", "“<!--<script>”", "“]]>”", "“\"\\”", "“日本語”", "“{script}”", "“🙂”", "“␊line”", "“␣blank␣”",
    ]  # fmt: skip


def test_the_policy_stops_other_scripts(show, tab):
    show(loom.causal, 5)
    tab.run(
        "(() => { const one = document.createElement('script'); one.textContent = 'window.bad = 1'; document.body.append(one); })()"
    )
    tab.run(
        "(() => { document.body.insertAdjacentHTML('beforeend', '<b onclick=\"window.bad = 1\" id=\"b\">x</b>'); b.click(); })()"
    )
    assert tab.run("window.bad") is None
    assert tab.said and all("Content Security Policy" in said for said in tab.said)
    tab.said.clear()


def test_light_and_dark_can_be_switched(show):
    tab = show(loom.causal, 13)
    tab.run("document.querySelector('.theme').click()")
    tab.run("new Promise((done) => setTimeout(done, 50)).then(() => null)")
    tab.settle()
    assert torch.equal(shown(tab, DARK), loom.causal.dense(13, 13)[0, 0])


def test_what_the_page_cannot_run_is_drawn_by_cells(show):
    def near(b, h, q_idx, kv_idx):
        return (q_idx - kv_idx).float().exp() < 3

    mask = loom.causal & loom.as_mask(near)
    tab = show(mask, 17)
    assert torch.equal(shown(tab), mask.dense(17, 17)[0, 0])
    assert "cannot be evaluated in the browser" in text(tab, ".legend + .note")
    assert "exp is not known to give the same numbers in a browser" in text(tab, ".operands")
    tab.mouse("mouseMoved", *place_of(tab, 7, 3))
    assert operands(tab) == ["visible", "?"] and "this pair is hidden" in facts(tab)
    tab.mouse("mouseMoved", 5, 5)
    switch(tab, 1)
    assert torch.equal(shown(tab), loom.causal.dense(17, 17)[0, 0])


def test_a_table_that_is_read_behind_its_end_is_said(show):
    table = torch.ones(40).bool()

    def beyond(b, h, q_idx, kv_idx):
        return table[torch.where((q_idx == 3001) & (kv_idx == 17), 40, 0)]

    tab = show(loom.as_mask(beyond), 5000)
    assert tab.run("held.reader.failure") is None
    tab = show(loom.as_mask(beyond), 5000, link="#z=20&q=3001&k=17")
    assert "index 40 is outside a table of 40 entries" in text(tab, ".legend + .note")


def test_a_narrow_window_has_the_panel_below(show):
    tab = show(MASK, 17, size=(390, 800))
    canvas, panel = (
        tab.run(
            f"(() => {{ const box = document.querySelector('{name}').getBoundingClientRect(); "
            "return [box.top, box.bottom, box.left, box.right]; })()"
        )
        for name in ("canvas", ".panel")
    )
    assert canvas[1] <= panel[0] and panel[1] <= 800 and panel[3] <= 390 and canvas[3] <= 390
    assert tab.run("document.documentElement.scrollWidth") <= 390
    assert torch.equal(shown(tab), MASK.dense(17, 17)[0, 0])


def test_several_explorers_share_one_script_on_a_page(tab, tmp_path):
    first, second = (loom.show.explorer.parts(mask, 13) for mask in (loom.causal, loom.window(back=2)))
    script, style = loom.show.explorer.script(), loom.show.explorer.style()
    path = tmp_path / "site.html"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><style>{style}</style>{first.element}{second.element}<script>{script}</script>'
    )
    tab.open(path)
    assert tab.run("[...document.querySelectorAll('.explorer h1')].map((one) => one.innerText)") == [
        "causal", "window(back=2, ahead=0)",
    ]  # fmt: skip
    assert tab.run("location.hash") == ""


def test_a_notebook_shows_a_page_in_a_frame(tab, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset='utf-8'>{loom.show.page(MASK, 17)._repr_html_()}")
    tab.open(path, waits=False)
    drawn = np.zeros(())
    while drawn.sum() < 10_000:  # the frame says nothing to the page around it
        drawn = (screen(tab) == LIGHT["visible"]).all(-1)


def screen(tab):
    from matplotlib.image import imread

    found = imread(io.BytesIO(base64.b64decode(tab.ask("Page.captureScreenshot", format="png")["data"])), format="png")
    return (found[..., :3] * 255).round().astype(np.uint8)
