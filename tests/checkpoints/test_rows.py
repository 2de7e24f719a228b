"""Matrices with other rows."""

import pytest
import torch

from mergekern.checkpoints import open_checkpoint
from mergekern.checkpoints.rows import Rearranged, Rows, RowsOf
from mergekern.checkpoints.selection import Selected, Selection


@pytest.fixture
def rows():
    """Rows of two matrices, 5 x 3 and 4 x 3, and what they are."""
    own, other = torch.randn(5, 3), torch.randn(4, 3).to(torch.bfloat16)
    here, there = open_checkpoint({"w": own}), open_checkpoint({"v": other})
    again = RowsOf(here, "w", torch.tensor([-1, -1, -1, 0, -1, -1, -1]))
    found = Rows(
        torch.tensor([3, 4, -1, -1, -1, 0, 2]),
        (RowsOf(there, "v", torch.tensor([0, 0, 2, 1, -1, -1, -1])), again), padding=2,
    )  # fmt: skip
    known = torch.stack(
        [own[3], own[4], other[2].float(), (other[1].double() + own[0]).div(2).float(), torch.zeros(3), own[0], own[2]]
    )
    return here, found, torch.cat([known, known.mean(0).expand(2, 3)])


@pytest.mark.parametrize(("start", "stop"), [(0, 27), (4, 5), (7, 13), (20, 25), (26, 27), (21, 21), (0, 0)])
def test_any_range_is_that_of_the_whole(rows, start, stop):
    here, found, expected = rows
    torch.testing.assert_close(Rearranged(here, "w", found).read(start, stop), expected.reshape(-1)[start:stop])


def test_a_selection_reads_them(rows):
    here, found, expected = rows
    selection = Selection(here, {"new": Selected("w", torch.float64, found)}, {})
    assert selection.tensors["new"].shape == (9, 3)
    torch.testing.assert_close(selection.read("new"), expected.double())
    torch.testing.assert_close(selection.read_columns("new", 1, 3), expected[:, 1:].double())


def test_vectors_have_elements_for_rows():
    here = open_checkpoint({"bias": torch.tensor([1.0, 2.0, 4.0])})
    found = Rearranged(here, "bias", Rows(torch.tensor([2, 0]), padding=1)).read(0, 3)
    assert found.tolist() == [4.0, 1.0, 2.5]
