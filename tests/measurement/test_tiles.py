"""Work is shared without gap or overlap."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekern.measurement.tiles import Item, cost, share, tiles


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(1, 100), min_size=1, max_size=5), min_size=1, max_size=12), st.integers(1, 20))
def test_shares_have_every_item_once_and_are_balanced(costs, count):
    shares = [share(costs, index, count) for index in range(count)]
    every = [Item(tensor, tile) for tensor, row in enumerate(costs) for tile in range(len(row))]
    assert sorted(item for part in shares for item in part) == every
    loads = [sum(costs[item.tensor][item.tile] for item in part) for part in shares]
    # The largest and the smallest share differ by at most the largest item.
    assert max(loads) - min(loads) <= max(itertools.chain(*costs)) + 1e-9


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(1, 12), st.integers(1, 6))
def test_tiles_have_every_new_pair_once(known, new, size):
    models = range(known, known + new)
    found = np.zeros((known + new, known + new), dtype=int)
    for tile in tiles(range(known), models, size):
        assert max(len(tile.rows), len(tile.columns)) <= size
        assert cost((3, 2), tile, with_spectrum=True) > 0
        found[np.ix_(tile.rows, tile.columns or tile.rows)] += 1
        if tile.columns:
            found[np.ix_(tile.columns, tile.rows)] += 1
    assert (found[:known, :known] == 0).all()
    assert (found[known:] == 1).all()
    assert (found[:, known:] == 1).all()
