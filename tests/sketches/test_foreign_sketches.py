"""Files of sketches whose checksum is right and whose content is not."""

import numpy as np
import pytest

from mergekern import Sketches, StatisticsError
from mergekern.statistics.blocks import write_block

GOOD = {"format": 1, "models": ["a", "b"], "random_state": 0, "base": None}
ARRAYS = {"values": np.ones((2, 64)), "squares": np.ones(2)}
WRONG = {
    "other statistics": ({"name": "x"}, {}, "format None"),
    "a model twice": ({"models": ["a", "a"]}, {}, "a name is there twice"),
    "fewer models": ({"models": ["a"]}, {}, "'values' has the shape"),
    "nested models": ({"models": [["a"], "b"]}, {}, "models.0"),
    "text as a state": ({"random_state": "0"}, {}, "random_state"),
    "an odd size": ({}, {"values": np.ones((2, 65))}, "65 numbers"),
    "NaN": ({}, {"squares": np.array([1.0, np.nan])}, "'squares' holds NaN"),
    "negative lengths": ({}, {"squares": np.array([1.0, -1.0])}, "negative"),
    "no values": ({}, {"values": None}, "'values' is missing"),
}


@pytest.mark.parametrize(("said", "arrays", "word"), WRONG.values(), ids=WRONG)
def test_wrong_content_is_refused(tmp_path, said, arrays, word):
    path = tmp_path / "s.sketch"
    write_block(path, ARRAYS, GOOD)
    assert Sketches.load(path).models == ("a", "b")
    description = said if word == "format None" else GOOD | said
    write_block(path, {name: array for name, array in (ARRAYS | arrays).items() if array is not None}, description)
    with pytest.raises(StatisticsError, match=word) as caught:
        Sketches.load(path)
    assert str(path) in str(caught.value)
