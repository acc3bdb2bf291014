"""What a plan prints, and explains."""

import maskloom as loom
from maskloom.distributed.asking import checked, weighed
from maskloom.distributed.report import Report, _amount


def report(mask, ranks, **options):
    asked = checked(mask, 4096, ranks, **({"heads": (32, 8)} | options))
    tiles, sizes, schemes = found = weighed(asked, ranks)
    return Report(found.best, schemes, asked.refused, asked.named, tiles.unit, sizes)


def test_a_plan_says_what_it_does():
    assert report(loom.window(back=255), [2]).text().splitlines() == [
        "strategy: needed (the least estimate of computing and receiving)",
        "length: 4096 positions in 2 times 2048 rows",
        "queries: tiles of 128 positions, in order",
        "bytes: 1.0 MiB received by the rank that receives most, in a forward pass; of 1 batch rows, "
        "heads of 128 features, 2 bytes a number",
        "balance: 1.032, the tiles of the busiest rank over the mean",
        "rank  tiles x heads  received",
        "   0           1440  0 B",
        "   1           1536  1.0 MiB",
    ]


def test_it_explains_what_others_would_cost():
    said = report(loom.causal, [3]).explained().splitlines()
    assert said[9:] == [
        "strategy  balance  received  estimate",
        *said[10:12],
        'not heads: strategy "heads" gives each rank as many query heads; there are 32 heads and 3 ranks',
    ]
    assert [line.split("  ")[0] for line in said[10:12]] == ["gather", "needed"]


def test_why_is_said():
    assert "strategy: heads (asked for)" in report(loom.causal, [2], strategy="heads").text()
    assert "queries: in order" in report(loom.causal, [2], strategy="heads").text()
    assert "head and tail" in report(loom.causal, [2], strategy="gather").text()
    assert "strategy: heads × gather (asked for)" in report(loom.causal, [2, 2], strategy=("heads", "gather")).text()


def test_bytes_are_read_as_people_do():
    assert list(map(_amount, (0, 1023, 1024, 3 << 20, 5 << 30))) == ["0 B", "1023 B", "1.0 KiB", "3.0 MiB", "5.00 GiB"]
