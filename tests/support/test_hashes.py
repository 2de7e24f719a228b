from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support import hashes

FRAME = pd.DataFrame({"x": [1.0, np.nan], "why": ["", "late"]}, index=["a", "b"])
DIFFERENT = [
    b"ab", "ab", {"a": 1}, {"a": 2}, np.zeros(2), np.zeros((1, 2)), np.zeros(2, np.float32), np.array([0.0, -0.0]),
    torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.tensor(0.0), torch.tensor([0.0, 1.0]),
    FRAME, FRAME.rename(columns={"x": "y"}), FRAME.iloc[::-1], FRAME.assign(x=1.0), FRAME.assign(why=["", "soon"]),
]  # fmt: skip


def test_what_differs_has_another_hash():
    assert len({hashes.digest(value) for value in DIFFERENT}) == len(DIFFERENT)
    assert hashes.digest(FRAME) == hashes.digest(FRAME.copy())
    assert hashes.digest(torch.eye(3)[:, 1]) == hashes.digest(torch.tensor([0.0, 1.0, 0.0]))


def test_masked():
    document = {"versions": {"torch": "2"}, "kept": [{"seconds": 1.5, "rank": 2}]}
    assert hashes.masked(document) == {"kept": [{"rank": 2}]}


@pytest.mark.usefixtures("one_thread")
def test_two_runs_give_the_same_and_another_value_shows(monkeypatch):
    first = hashes.hashes("adapters")
    assert len(first) == 1 + len(hashes.mergekern.METHODS)
    assert hashes.hashes("adapters") == first
    monkeypatch.setattr(hashes, "adapt", partial(hashes.adapt, scale=0.2))
    assert not {*hashes.hashes("adapters").values()} & {*first.values()}
