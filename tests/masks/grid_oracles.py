"""Every mask of `tests.catalog.grids` again, in plain Python: ``oracle(b, h, q, k) -> bool``."""

import itertools

from tests.catalog.grids import BATCH, BEAMS, BEAMS_BY_ROW, DOCUMENTS, HEADS, PARENTS, TEXT_AND_IMAGES, flags, integers


def cells_of(shape):
    return list(itertools.product(*map(range, shape)))


def on_cells(shape, sees, order=None):
    """An oracle of positions from one of cells; the cell at each position is that of the order, or row-major."""
    cells = order or cells_of(shape)
    return lambda b, h, q, k: q < len(cells) and k < len(cells) and sees(cells[q], cells[k])


def along_each_axis(shape, rule, *parameters):
    def sees(q, k):
        return all(rule(*axis) for axis in zip(q, k, shape, *parameters, strict=True))

    return sees


def lane_of(i, size, dilation):
    return [j for j in range(size) if j % dilation == i % dilation]


def in_moved_window(i, j, size, window, dilation):
    lane = lane_of(i, size, dilation)
    first = min(max(lane.index(i) - window // 2, 0), len(lane) - window)
    return j in lane[first : first + window]


def in_cut_window(i, j, size, window, dilation):
    lane = lane_of(i, size, dilation)
    first = lane.index(i) - window // 2
    return j in lane[max(first, 0) : first + window]


def neighbours(shape, window, dilation, rule=in_moved_window, order=None):
    return on_cells(shape, along_each_axis(shape, rule, window, dilation), order)


def in_shared_window(i, j, size, window, dilation, stride, is_causal, moves=True):
    """NATTEN: cells of a group look from one of them, the middle one, or the last along a causal axis."""
    lane = lane_of(i, size, dilation)
    if j not in lane:
        return False
    at, here = lane.index(i), lane.index(j)
    group = range(at // stride * stride, at // stride * stride + stride)
    if is_causal:
        last = min(group[-1], len(lane) - 1)
        return here in [last - back for back in range(window)] and here <= at
    around = [group[stride // 2] + step for step in range(-(window // 2), window - window // 2)]
    while moves and around[0] < 0:
        around = [one + 1 for one in around]
    while moves and around[-1] >= len(lane):
        around = [one - 1 for one in around]
    return here in around


def in_shared_cut_window(*axis):
    return in_shared_window(*axis, moves=False)


def sharing(shape, window, dilation, stride, causal, rule=in_shared_window):
    return on_cells(shape, along_each_axis(shape, rule, window, dilation, stride, causal))


def with_halo(i, j, size, block, halo):
    """HaloNet: a block of cells sees itself and the cells that are at most ``halo`` away from it."""
    first = i // block * block
    return any(abs(j - one) <= halo for one in range(first, first + block))


def same_but_for(*axes):
    return lambda q, k: all(a == b for axis, (a, b) in enumerate(zip(q, k, strict=True)) if axis not in axes)


def in_rolled_window(i, j, size, window, shift):
    """Swin: roll, cut into windows, and let only cells of one region of the window see each other."""
    size = -(-size // window) * window

    def window_and_region(x):
        x = (x - shift) % size
        region = (x >= size - window) + (x >= size - shift) if shift else 0
        return x // window, region

    return window_and_region(i) == window_and_region(j)


def rolled_windows(shape, window, shift):
    return on_cells(shape, along_each_axis(shape, in_rolled_window, window, shift))


def tile_order(shape, tile):
    corners = itertools.product(*(range(0, size, side) for size, side in zip(shape, tile, strict=True)))
    return [tuple(map(sum, zip(corner, place, strict=True))) for corner in corners for place in cells_of(tile)]


def morton_order(shape):
    def code(cell):
        bits = zip(*(format(coordinate, "08b") for coordinate in cell), strict=True)
        return "".join(itertools.chain.from_iterable(bits))

    return sorted(cells_of(shape), key=code)


def tiles_near(shape, tile, window):
    tiles = [size // side for size, side in zip(shape, tile, strict=True)]
    near = along_each_axis(tiles, in_moved_window, window, [1] * len(shape))

    def sees(q, k):
        return near(*([x // side for x, side in zip(cell, tile, strict=True)] for cell in (q, k)))

    return on_cells(shape, sees, tile_order(shape, tile))


def frames_of(frames, frame_size, prompt, sees):
    tokens = [None] * prompt + [(frame, place) for frame in range(frames) for place in range(frame_size)]

    def seen(b, h, q, k):
        if q >= len(tokens) or k >= len(tokens):
            return False
        return tokens[q] is None or tokens[k] is None or sees(q, k, *tokens[q], *tokens[k])

    return seen


def diffused(length, block_size):
    tokens = [(side, place // block_size) for side in ("noised", "clean") for place in range(length)]

    def sees(b, h, q, k):
        if q >= len(tokens) or k >= len(tokens):
            return False
        (q_side, q_block), (k_side, k_block) = tokens[q], tokens[k]
        if q_side == k_side:
            return q_block == k_block if q_side == "noised" else q_block >= k_block
        return q_side == "noised" and q_block > k_block

    return sees


def diffused_alone(places, block_size):
    """One document: ``places`` are its positions, by which blocks are counted."""
    tokens = [(side, place // block_size) for side in ("noised", "clean") for place in places]

    def sees(q, k):
        (q_side, q_block), (k_side, k_block) = tokens[q], tokens[k]
        if q_side == k_side:
            return q_block == k_block if q_side == "noised" else q_block >= k_block
        return q_side == "noised" and q_block > k_block

    return sees


def diffused_documents(rows, block_size, paired=False, first=0):
    """Each document's noised and clean tokens, as they are alone; ``first`` is the place of a document's first token."""

    def layout(row):
        runs = [(ids, len(list(run))) for ids, run in itertools.groupby(row)]
        if paired:
            return [(number, ids, n, at) for number, (ids, n) in enumerate(runs) for at in range(2 * n)]
        halves = [[(number, ids, n, at) for number, (ids, n) in enumerate(runs) for at in range(n)] for _ in range(2)]
        return halves[0] + [(number, ids, n, at + n) for number, ids, n, at in halves[1]]

    tokens = [layout(row) for row in rows]

    def sees(b, h, q, k):
        (q_run, ids, n, q_at), (k_run, _, _, k_at) = tokens[b % len(rows)][q], tokens[b % len(rows)][k]
        return q_run == k_run and ids >= 0 and diffused_alone(range(first, first + n), block_size)(q_at, k_at)

    return sees


def climbed(parents, prefixes=0):
    def sees(b, h, q, k):
        row = parents[b] if isinstance(parents[0], list) else parents
        prefix = prefixes[b] if isinstance(prefixes, list) else prefixes
        if q - prefix >= len(row):
            return False
        seen, node = set(range(min(q + 1, prefix))), q - prefix
        while node >= 0:
            seen.add(node + prefix)
            node = row[node]
        return k in seen

    return sees


def searched(steps, prefix=0):
    """Beam search as it goes: each beam carries all it has seen."""
    seen_by = [set(range(q + 1)) for q in range(prefix)]
    histories = []
    for step in steps:
        histories = [(histories[parent] if parent >= 0 else set(range(prefix))) | {len(seen_by) + beam}
                     for beam, parent in enumerate(step)]  # fmt: skip
        seen_by += histories
    return lambda b, h, q, k: q < len(seen_by) and k in seen_by[q]


def searched_by_row(steps, prefixes=(0,) * BATCH):
    rows = [searched([step[row] for step in steps], prefixes[row]) for row in range(BATCH)]
    return lambda b, h, q, k: rows[b](b, h, q, k)


def mixed(ids):
    def sees(b, h, q, k):
        row = ids[b] if isinstance(ids[0], list) else ids
        same_run = row[q] >= 0 and k < len(row) and len(set(row[min(q, k) : max(q, k) + 1])) == 1
        return k <= q or same_run

    return sees


def latest(locations, media, all_before=False):
    """``media``: the image of each key."""

    def sees(b, h, q, k):
        row = locations[b] if isinstance(locations[0], list) else locations
        keys = media[b] if isinstance(media[0], list) else media
        images = range(sum(row[: q + 1]))
        return keys[k] in (images if all_before else images[-1:])

    return sees


def table_by(values, q_size=1, kv_size=1):
    """``values``: (B or 1, H or 1, rows, columns)."""

    def sees(b, h, q, k):
        row, column = q // q_size, k // kv_size
        inside = row < values.shape[2] and column < values.shape[3]
        return inside and bool(values[b % values.shape[0], h % values.shape[1], row, column])

    return sees


def chosen(indices, q_size, kv_size):
    """``indices``: (B, H or 1, query blocks, k)."""

    def sees(b, h, q, k):
        rows = indices[b, h % indices.shape[1]].tolist()
        return q // q_size < len(rows) and k // kv_size in rows[q // q_size]

    return sees


ORACLES = {
    "neighbourhood": neighbours((3, 5), (3, 3), (1, 1)),
    "neighbourhood_1d": neighbours((11,), (5,), (1,)),
    "neighbourhood_even": neighbours((3, 5), (2, 4), (1, 1)),
    "neighbourhood_3d": neighbours((2, 3, 5), (1, 3, 2), (1, 1, 1)),
    "neighbourhood_dilated": neighbours((5, 7), (2, 3), (2, 1)),
    "neighbourhood_dilated_3d": neighbours((2, 3, 5), (1, 1, 2), (2, 3, 2)),
    "neighbourhood_strided": sharing((5, 7), (3, 4), (1, 1), (2, 3), (False, False)),
    "neighbourhood_strided_dilated": sharing((11, 3), (5, 3), (2, 1), (4, 3), (False, False)),
    "neighbourhood_causal": sharing((3, 5), (2, 3), (1, 1), (1, 1), (True, False)),
    "neighbourhood_causal_strided": sharing((11,), (5,), (1,), (3,), (True,)),
    "neighbourhood_causal_all": sharing((7, 5), (3, 2), (2, 1), (2, 1), (True, True)),
    "grid_window_halo": on_cells((6, 7), along_each_axis((6, 7), with_halo, (2, 3), (1, 1))),
    "grid_window_causal": sharing((5, 3), (3, 3), (1, 1), (2, 1), (True, False), in_shared_cut_window),
    "grid_window": neighbours((3, 5), (3, 3), (1, 1), in_cut_window),
    "grid_window_wide": neighbours((2, 3), (5, 4), (1, 1), in_cut_window),
    "grid_window_dilated": neighbours((5, 7), (3, 3), (1, 3), in_cut_window),
    "grid_window_3d": neighbours((2, 3, 5), (2, 1, 3), (1, 1, 1), in_cut_window),
    "axial_rows": on_cells((3, 5), same_but_for(1)),
    "axial_columns": on_cells((3, 5), same_but_for(0)),
    "axial_frames": on_cells((2, 3, 5), same_but_for(1, 2)),
    "shifted_windows": rolled_windows((4, 6), (2, 2), (1, 1)),
    "shifted_windows_not_shifted": rolled_windows((3, 5), (2, 3), (0, 0)),
    "shifted_windows_3d": rolled_windows((2, 3, 5), (2, 3, 2), (1, 2, 0)),
    "tiled": neighbours((4, 6), (3, 3), (1, 1), order=tile_order((4, 6), (2, 3))),
    "tiled_3d": on_cells((2, 3, 5), same_but_for(0, 2), tile_order((2, 3, 5), (2, 1, 5))),
    "morton": neighbours((3, 5), (3, 3), (1, 1), order=morton_order((3, 5))),
    "morton_square": neighbours((4, 4), (3, 3), (1, 1), in_cut_window, morton_order((4, 4))),
    "morton_3d": on_cells((2, 3, 5), same_but_for(0), morton_order((2, 3, 5))),
    "grid_tiles": tiles_near((4, 10), (2, 2), (1, 3)),
    "grid_tiles_even": tiles_near((4, 6), (2, 3), (2, 1)),
    "grid_tiles_3d": tiles_near((2, 3, 10), (1, 3, 2), (1, 1, 3)),
    "spatial": frames_of(3, 5, 2, lambda q, k, *_: abs(q - k) < 7),
    "spatial_sinks": frames_of(3, 5, 0, lambda q, k, qf, qp, kf, kp: abs(q - k) < 5 or kf < 1),
    "temporal": frames_of(3, 5, 2, lambda q, k, qf, qp, kf, kp: abs(qp - kp) < 2),
    "temporal_places": frames_of(3, 5, 0, lambda q, k, qf, qp, kf, kp: qp == kp),
    "block_diffusion": diffused(6, 3),
    "block_diffusion_cut": diffused(7, 3),
    "block_diffusion_documents": diffused_documents([DOCUMENTS[0].tolist()], 2),
    "block_diffusion_documents_by_row": diffused_documents(DOCUMENTS.tolist(), 3),
    "block_diffusion_paired": diffused_documents([DOCUMENTS[1].tolist()], 2, paired=True),
    "block_diffusion_paired_by_row": diffused_documents(DOCUMENTS.tolist(), 3, paired=True),
    "block_diffusion_counted": lambda b, h, q, k: diffused_documents([[0] * 4 + [1] * 3], 2, first=3 * (q % 7 < 4))(
        b, h, q, k
    ),
    "block_diffusion_packed": diffused_documents([[0] * 3 + [1] * 3 + [-1]], 2, paired=True),
    "tree": climbed(PARENTS[0].tolist()),
    "tree_of_a_list": climbed([-1, 3, -1, 0, 1], 2),
    "tree_by_row": climbed(PARENTS.tolist(), 5),
    "tree_prefix_tensor": climbed(PARENTS.tolist(), 3),
    "tree_prefix_by_row": climbed(PARENTS[1].tolist(), [3, 0, 5]),
    "tree_by_row_prefix_by_row": climbed(PARENTS.tolist(), [2, 5, 3]),
    "beams": searched(BEAMS, 3),
    "beams_by_row": searched_by_row([step.tolist() for step in BEAMS_BY_ROW]),
    "beams_prefix_by_row": searched_by_row([[step] * BATCH for step in BEAMS], [3, 1, 2]),
    "mixed_modal": mixed(TEXT_AND_IMAGES.tolist()),
    "mixed_modal_by_row": mixed(integers(-1, 1, BATCH, 17).tolist()),
    "mixed_modal_flags": mixed((flags(BATCH, 17).long() - 1).tolist()),
    "flamingo": latest([False, True, False, False, True, True, False], [k // 3 for k in range(11)]),
    "flamingo_by_row": latest(flags(BATCH, 13).tolist(), [k // 5 for k in range(17)]),
    "flamingo_ids": latest(flags(13).tolist(), integers(-1, 3, BATCH, 11).tolist()),
    "flamingo_all": latest([False, True, False, False, True, True, False], [k // 3 for k in range(11)], True),
    "flamingo_all_by_row": latest(flags(BATCH, 13).tolist(), integers(-1, 3, BATCH, 11).tolist(), True),
    "from_dense": table_by(flags(7, 11)[None, None]),
    "from_dense_by_row": table_by(flags(BATCH, 7, 11)[:, None]),
    "from_dense_by_head": table_by(flags(1, HEADS, 7, 11)),
    "from_dense_by_both": table_by(flags(BATCH, HEADS, 7, 11)),
    "from_dense_for_all": table_by(flags(1, 1, 7, 11)),
    "from_blocks": table_by(flags(2, 5)[None, None], 3, 3),
    "from_blocks_by_row": table_by(flags(BATCH, 1, 2, 5), 5, 2),
    "from_blocks_by_both": table_by(flags(BATCH, HEADS, 2, 5), 5, 2),
    "top_k_blocks": chosen(integers(-1, 4, BATCH, HEADS, 3, 2), 5, 3),
    "top_k_blocks_by_query": chosen(integers(-1, 2, BATCH, 11, 2)[:, None], 1, 5),
}
