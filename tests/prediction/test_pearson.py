"""PearsonRegressor: optimal, deterministic, independent of units; the published fit gives the same in a batch."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import Lasso, LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from mergekern.errors import OptionError
from mergekern.prediction import published
from mergekern.prediction.correlation import pearson_r
from mergekern.prediction.pearson import PearsonRegressor, fit_exact, lasso
from mergekern.prediction.published import fit_published, scale

KINDS = [
    PearsonRegressor(),
    PearsonRegressor(penalty=None),
    PearsonRegressor(solver="adam"),
    PearsonRegressor(penalty=None, solver="adam"),
]
EXACT = KINDS[:2]


@parametrize_with_checks(KINDS)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def make_data(n=60, metrics=8, seed=0):
    """Correlated metrics of different scales, two of which determine y."""
    random = np.random.default_rng(seed)
    X = random.standard_normal((n, metrics)) @ random.standard_normal((metrics, metrics))
    X *= 10.0 ** random.integers(-6, 6, metrics)
    signal = scale(X, np.ones(n, dtype=bool)) @ [2.0, -1.0, *[0.0] * (metrics - 2)]
    return X, 0.8 + 0.02 * (signal + random.standard_normal(n) * 0.3)


def r_and_length(model, X, y):
    """Return r on the training pairs, and ‖c‖₁ where predictions have a standard deviation of 0.01."""
    scaled = scale(X, np.ones(len(X), dtype=bool))
    spread = (scaled @ model.weights_).std()
    return pearson_r(model.predict(X), y), np.abs(model.weights_).sum() * 0.01 / spread


def test_dense_is_least_squares():
    X, y = make_data()
    model = PearsonRegressor(penalty=None).fit(X, y)
    scaled = scale(X, np.ones(len(X), dtype=bool))
    expected = LinearRegression().fit(scaled, y)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-8)
    np.testing.assert_allclose(model.predict(X), expected.predict(scaled), rtol=1e-8)


@pytest.mark.parametrize("penalty", [0.0, 0.01, 0.1, 0.5])
def test_lasso_meets_its_optimality_conditions(penalty):
    random = np.random.default_rng(1)
    for m, rank in ((1, 1), (7, 7), (25, 25), (12, 3)):
        A = random.standard_normal((rank + 5 if rank == m else rank, m)) * np.logspace(0, -3, m)
        gram, products = A.T @ A, A.T @ random.standard_normal(len(A))
        c = lasso(gram, products, penalty)
        gradient = products - gram @ c
        size = max(penalty, np.abs(products).max())
        assert np.abs(gradient).max() <= penalty + 1e-6 * size
        np.testing.assert_allclose(gradient[c != 0], penalty * np.sign(c[c != 0]), atol=1e-6 * size)


def test_l1_is_the_lasso_of_standardised_targets():
    X, y = make_data(metrics=4)
    model = PearsonRegressor(alpha=5.0).fit(X, y)
    scaled = scale(X, np.ones(len(X), dtype=bool))
    expected = Lasso(alpha=0.05, tol=1e-12, max_iter=1_000_000).fit(scaled, (y - y.mean()) / y.std())
    direction = expected.coef_ / (scaled @ expected.coef_).std()
    np.testing.assert_allclose(model.weights_, 0.01 * direction, atol=1e-8)
    assert (model.weights_ == 0).any()
    np.testing.assert_array_equal(model.weights_ == 0, expected.coef_ == 0)


def test_l1_solves_the_well_posed_problem():
    """Neither a direction nearby nor a general optimiser reaches a larger r - alpha ‖c‖₁."""
    X, y = make_data(metrics=5)
    alpha = 10.0
    r, length = r_and_length(PearsonRegressor(alpha=alpha).fit(X, y), X, y)
    scaled = scale(X, np.ones(len(X), dtype=bool))

    def loss(c):
        return alpha * np.abs(c).sum() * 0.01 / (scaled @ c).std() - pearson_r(scaled @ c, y)

    for seed in range(5):
        start = np.random.default_rng(seed).standard_normal(5)
        assert loss(minimize(loss, start, method="Nelder-Mead").x) >= alpha * length - r - 1e-9


@pytest.mark.parametrize("alpha", [None, 0.3, 1.5])
def test_exact_is_at_least_as_good_as_adam(alpha):
    options = {"penalty": None} if alpha is None else {"alpha": alpha}
    for seed in range(5):
        X, y = make_data(seed=seed)
        exact, adam = (PearsonRegressor(solver=solver, **options).fit(X, y) for solver in ("exact", "adam"))
        objective = [r - (alpha or 0) * length for r, length in (r_and_length(m, X, y) for m in (exact, adam))]
        assert objective[0] >= objective[1]


def test_a_penalty_too_large_leaves_the_mean():
    X, y = make_data()
    model = PearsonRegressor(alpha=1000.0).fit(X, y)
    assert not model.coef_.any()
    assert np.isnan(model.train_r_)
    np.testing.assert_allclose(model.predict(X), y.mean())


@pytest.mark.parametrize("estimator", EXACT, ids=repr)
def test_units_of_target_and_metrics_do_not_matter(estimator):
    X, y = make_data()
    before = estimator.fit(X, y).predict(X)
    factors, shifts = np.array([1e-3, -1e3, 7.0, -1.0, 2.0, 1e4, 0.5, -3.0]), np.arange(8.0)
    np.testing.assert_allclose(estimator.fit(X * factors + shifts, y).predict(X * factors + shifts), before, rtol=1e-6)
    np.testing.assert_allclose(estimator.fit(X, 5 - 300 * y).predict(X), 5 - 300 * before, rtol=1e-6)


@pytest.mark.parametrize("estimator", KINDS, ids=repr)
def test_order_of_the_pairs_does_not_matter(estimator):
    X, y = make_data()
    before = estimator.fit(X, y).predict(X)
    order = np.random.default_rng(0).permutation(len(y))
    np.testing.assert_allclose(estimator.fit(X[order], y[order]).predict(X), before, rtol=1e-6)


@pytest.mark.parametrize("estimator", EXACT, ids=repr)
def test_copies_share_a_coefficient_and_change_no_prediction(estimator):
    X, y = make_data()
    plain = estimator.fit(X, y)
    before, coefficient = plain.predict(X), plain.coef_[0]
    copied = np.column_stack([X[:, 0] / np.sqrt(10), X, 2 - X[:, 0]])
    model = estimator.fit(copied, y)
    np.testing.assert_allclose(model.predict(copied), before, rtol=1e-8)
    np.testing.assert_allclose(model.coef_[[0, 1, -1]], coefficient / 3 * np.array([1, 1, -1]), rtol=1e-6)


@pytest.mark.parametrize("estimator", KINDS, ids=repr)
def test_constant_metrics_have_no_say(estimator):
    X, y = make_data()
    model = estimator.fit(np.column_stack([X, np.full(len(y), 3.0)]), y)
    changed = np.column_stack([X, np.full(len(y), 4.0)])
    if estimator in EXACT:
        assert model.coef_[-1] == 0
        np.testing.assert_array_equal(model.predict(changed), model.predict(np.column_stack([X, np.full(len(y), 3.0)])))
    assert np.isfinite(model.predict(changed)).all()


@pytest.mark.parametrize("estimator", KINDS, ids=repr)
def test_few_pairs_and_a_constant_target(estimator):
    X, y = make_data(n=3, metrics=28)
    assert np.isfinite(estimator.fit(X, y).predict(X)).all()
    np.testing.assert_allclose(estimator.fit(X, [0.5, 0.5, 0.5]).predict(X), 0.5)


@pytest.mark.parametrize("estimator", KINDS, ids=repr)
def test_one_pair_is_all_that_is_predicted(estimator):
    model = estimator.fit([[1.0, 2.0]], [0.5])
    assert model.predict([[1.0, 2.0], [3.0, 0.0]]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("estimator", KINDS, ids=repr)
def test_metrics_that_are_all_constant_leave_the_mean(estimator):
    model = estimator.fit(np.ones((4, 2)), [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(model.predict(np.ones((2, 2))), 0.25)


def test_seeds_decide_and_nothing_else():
    X, y = make_data()
    first, again, other = (PearsonRegressor(solver="adam", random_state=s).fit(X, y).weights_ for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    np.testing.assert_array_equal(*(PearsonRegressor(random_state=s).fit(X, y).coef_ for s in (3, 4)))


def published_fit(X, y, mask, c, alpha, protocol):
    """Return one published fit as the study describes it, by autograd in float64."""
    import torch

    x = torch.from_numpy(scale(X, mask)[mask])
    target = torch.from_numpy(y[mask] - y[mask].mean())
    c = torch.from_numpy(c).requires_grad_()
    optimizer = torch.optim.Adam([c], lr=0.01)
    best, waited = float("inf"), 0
    for _ in range(protocol.steps):
        optimizer.zero_grad()
        p = x @ c
        p = p - p.mean()
        loss = -(p * target).sum() / ((p**2).sum() * (target**2).sum()).sqrt() + (alpha or 0) * c.abs().sum()
        loss.backward()
        if alpha is None:
            c.data /= c.data.sum()
        optimizer.step()
        best, waited = (loss.item(), 0) if loss.item() < best - protocol.threshold else (best, waited + 1)
        if waited >= protocol.patience:
            break
    return c.detach().numpy()


@pytest.mark.parametrize(
    ("alpha", "name", "protocol"),
    [
        (None, "DENSE", published.DENSE),
        # The gradient of L1 jumps at zero, so two orders of summation differ after some steps.
        (1.0, "SPARSE", dataclasses.replace(published.SPARSE, steps=30)),
        (1.0, "SPARSE", dataclasses.replace(published.SPARSE, patience=3, threshold=0.05)),
    ],
    ids=["dense", "L1, 30 steps", "L1, stopped early"],
)
def test_batch_is_the_published_loop(alpha, name, protocol, monkeypatch):
    monkeypatch.setattr(published, name, protocol)
    X, y = make_data()
    Y = np.array([y, X[:, 3]])
    masks = np.array([np.arange(60) % 3 != fold for fold in range(3)])
    found = fit_published(X, Y, masks, [5, 6], alpha)
    assert found.shape == (3, 2, 2, 8)
    for fold, target, seed in ((0, 0, 0), (2, 1, 1), (1, 0, 1)):
        start = protocol.initial * np.random.default_rng([[5, 6][seed], fold, target]).standard_normal(8)
        expected = published_fit(X, Y[target], masks[fold], start, alpha, protocol)
        if alpha is not None:
            expected[np.abs(expected) < 1e-3] = 0
        np.testing.assert_allclose(found[fold, target, seed], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_the_estimator_is_one_fit_of_the_batch(alpha):
    X, y = make_data()
    options = {"penalty": None} if alpha is None else {"alpha": alpha}
    every = np.ones((1, 60), dtype=bool)
    model = PearsonRegressor(solver="adam", random_state=6, **options).fit(X, y)
    np.testing.assert_array_equal(model.weights_, fit_published(X, y, every, [6], alpha)[0, 0, 0])
    np.testing.assert_array_equal(PearsonRegressor(**options).fit(X, y).weights_, fit_exact(X, y, every, alpha)[0, 0])


@pytest.mark.parametrize(
    "options", [{"penalty": "l2"}, {"alpha": -1.0}, {"solver": "sgd"}, {"alpha": float("nan")}, {"alpha": "1"}]
)
def test_options_that_do_not_exist(options):
    with pytest.raises(OptionError, match="penalty is 'l1' or None"):
        PearsonRegressor(**options).fit(*make_data())
