"""Splitters over pairs: what they hold out, that order does not matter, and that scikit-learn can use them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate

from mergekern.errors import PredictionError
from mergekern.prediction import LeaveOneTaskOut, LeaveTasksOut, LeaveTwoTasksOut, MeasuredPairs
from tests.support.pairs import all_pairs, make_pairs

SPLITTERS = [LeaveOneTaskOut(), LeaveTwoTasksOut(), LeaveTasksOut(n_repeats=5), MeasuredPairs(10, n_repeats=5)]


@pytest.mark.parametrize(
    ("splitter", "folds", "train", "test"),
    [
        (LeaveOneTaskOut(), 20, 171, 19),
        (LeaveTwoTasksOut(), 190, 153, 1),
        (LeaveTasksOut(), 40, 45, 45),
        (LeaveTasksOut(5, n_repeats=7), 7, 105, 10),
        (MeasuredPairs(40, n_repeats=3), 3, 40, 150),
    ],
    ids=repr,
)
def test_sizes_of_twenty_tasks(splitter, folds, train, test):
    pairs = all_pairs(20)
    assert splitter.get_n_splits(groups=pairs) == folds
    assert {(len(a), len(b)) for a, b in splitter.split(None, groups=pairs)} == {(train, test)}


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_nothing_held_out_is_trained_on(splitter):
    pairs = np.array(all_pairs(8).tolist())
    for fold in splitter.folds(pairs):
        assert not set(fold.train) & set(fold.test)
        assert not np.isin(pairs[fold.train], fold.held_out).any()
        if isinstance(splitter, LeaveOneTaskOut):
            assert np.isin(pairs[fold.test], fold.held_out).any(1).all()
            assert len(fold.train) + len(fold.test) == len(pairs)
        elif isinstance(splitter, MeasuredPairs):
            assert fold.held_out == ()
            assert len(fold.train) + len(fold.test) == len(pairs)
        else:
            assert np.isin(pairs[fold.test], fold.held_out).all()


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_neither_order_nor_direction_of_pairs_matters(splitter):
    def named(pairs):
        sets = [
            {frozenset(pair) for pair in pairs[rows].tolist()} for fold in splitter.folds(pairs) for rows in fold[1:]
        ]
        return [fold.held_out for fold in splitter.folds(pairs)], sets

    pairs = np.array(all_pairs(8).tolist())
    shuffled = pairs[np.random.default_rng(0).permutation(len(pairs))]
    turned = np.where(np.arange(len(pairs))[:, None] % 2, shuffled[:, ::-1], shuffled)
    assert named(turned) == named(pairs)


def test_held_out_names_are_in_the_order_of_the_folds():
    pairs = all_pairs(4)
    assert LeaveOneTaskOut().held_out(None, groups=pairs) == [("task00",), ("task01",), ("task02",), ("task03",)]
    assert LeaveTwoTasksOut().held_out(None, groups=pairs)[:2] == [("task00", "task01"), ("task00", "task02")]


def test_draws_depend_on_the_seed_alone():
    pairs = all_pairs(8)
    for kind in (LeaveTasksOut, MeasuredPairs):
        first, again, other = (
            [fold.train.tolist() for fold in kind(4, n_repeats=6, random_state=seed).folds(pairs)] for seed in (1, 1, 2)
        )
        assert first == again
        assert first != other
        assert [fold.train.tolist() for fold in kind(4, n_repeats=3, random_state=1).folds(pairs)] == first[:3]


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_scikit_learn_takes_them(splitter):
    X, y = make_pairs()
    pairs = np.array(X.index.tolist())
    by_index = cross_val_score(LinearRegression(), X, y, cv=splitter, scoring="neg_mean_squared_error")
    by_groups = cross_val_score(
        LinearRegression(), X.to_numpy(), y, groups=pairs, cv=splitter, scoring="neg_mean_squared_error"
    )
    np.testing.assert_allclose(by_index, by_groups)
    assert len(by_index) == splitter.get_n_splits(X)
    cross_validate(LinearRegression(), X, y, cv=splitter, scoring="neg_mean_squared_error")
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1e6]}, cv=splitter, scoring="neg_mean_squared_error").fit(X, y)
    assert search.best_params_ == {"alpha": 0.1}


def test_a_task_in_one_pair_only():
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("c", "lonely")]
    folds = {fold.held_out: (fold.train.tolist(), fold.test.tolist()) for fold in LeaveOneTaskOut().folds(pairs)}
    assert folds[("lonely",)] == ([0, 1, 2], [3])
    # Holding out c leaves the pair of a and b; holding out both models of a pair leaves one pair.
    assert folds[("c",)] == ([0], [1, 2, 3])
    assert [(f.held_out, f.train.tolist()) for f in LeaveTwoTasksOut().folds(pairs)] == [
        (("a", "b"), [3]),
        (("c", "lonely"), [0]),
    ]


def test_missing_pairs_are_drawn_around():
    """Five models in a path: most groups of two contain no measured pair."""
    pairs = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
    folds = list(LeaveTasksOut(2, n_repeats=10).folds(pairs))
    assert len(folds) == 10
    assert all(len(fold.train) and len(fold.test) for fold in folds)


@pytest.mark.parametrize(
    ("splitter", "pairs", "message"),
    [
        (LeaveOneTaskOut(), [("a", "b")], "too few"),
        (LeaveTwoTasksOut(), [("a", "b"), ("b", "c"), ("a", "c")], "3 pairs of 3 tasks are too few"),
        (LeaveTasksOut(3), [("a", "b"), ("c", "d")], "from 2 to 2 can be held out"),
        (LeaveTasksOut(2.5), all_pairs(6), "from 2 to 4 can be held out"),  # type: ignore[arg-type]
        (MeasuredPairs(2), [("a", "b"), ("c", "d")], "from 1 to 1 can be measured"),
        (MeasuredPairs(1.5), [("a", "b"), ("c", "d"), ("a", "d")], "from 1 to 2 can be"),  # type: ignore[arg-type]
        (LeaveOneTaskOut(), [("a", "a")], "'a' with itself"),
        (LeaveOneTaskOut(), np.ones((3, 3)), r"not of shape \(3, 3\)"),
    ],
)
def test_what_cannot_be_split(splitter, pairs, message):
    with pytest.raises(PredictionError, match=message):
        list(splitter.folds(pairs))


def test_names_must_be_known():
    with pytest.raises(PredictionError, match="give pairs="):
        list(LeaveOneTaskOut().split(np.ones((3, 2))))
    with pytest.raises(PredictionError, match="2 pairs were given for 3 rows"):
        list(LeaveOneTaskOut().split(pd.DataFrame(np.ones((3, 2))), groups=[("a", "b"), ("a", "c")]))
