"""Task effects and the mixed model behind them, against closed forms."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from mergekern.prediction import TaskEffectsRegressor
from mergekern.prediction.mixed import RATIOS, _Equations, _OneGroup, fit_mixed, fit_robust
from tests.support.measurements import all_pairs


def simulate(tasks=12, sd=0.1, noise=0.02, seed=0):
    random = np.random.default_rng(seed)
    pairs = all_pairs([f"t{number:02d}" for number in range(tasks)])
    effects = sd * random.standard_normal(tasks)
    own = {f"t{number:02d}": effect for number, effect in enumerate(effects)}
    y = np.array([0.8 + own[a] + own[b] for a, b in pairs]) + noise * random.standard_normal(len(pairs))
    return pairs, y, own


def restricted_deviance(design, y, ratio):
    """Return −2 log restricted likelihood from the whole covariance matrix, up to a constant that depends on n."""
    n = len(y)
    covariance = np.eye(n) + ratio * design @ design.T
    inverse = np.linalg.inv(covariance)
    one = np.ones(n)
    weight = one @ inverse @ one
    residual = y - (one @ inverse @ y) / weight
    variance = residual @ inverse @ residual / (n - 1)
    return (n - 1) * np.log(variance) + np.linalg.slogdet(covariance)[1] + np.log(weight)


def test_variances_are_those_of_the_restricted_likelihood():
    random = np.random.default_rng(3)
    design = random.standard_normal((40, 6))
    y = design @ random.standard_normal(6) + random.standard_normal(40)
    found = fit_mixed(design, np.zeros(6, dtype=int), y)
    best = minimize_scalar(lambda log: restricted_deviance(design, y, np.exp(log)), bounds=(-6, 6), method="bounded")
    assert np.log(found.ratios[0]) == pytest.approx(best.x, abs=1e-3)


def equations(n=25, sizes=(6,), seed=6):
    random = np.random.default_rng(seed)
    design = random.standard_normal((n, sum(sizes)))
    y = design @ random.standard_normal(sum(sizes)) + random.standard_normal(n)
    return _Equations(design, np.repeat(np.arange(len(sizes)), sizes), y - y.mean(), random.uniform(0.2, 1.0, n))


@pytest.mark.parametrize("sizes", [(6,), (4, 5)])
def test_the_derivatives_of_the_likelihood_are_those_of_finite_differences(sizes):
    found, h = equations(sizes=sizes), 1e-5
    for at in np.random.default_rng(0).uniform(-4, 4, (4, len(sizes))):
        _, gradient, hessian = found.deviance(at)
        for group, unit in enumerate(h * np.eye(len(sizes))):
            up, down = found.deviance(at + unit), found.deviance(at - unit)
            assert gradient[group] == pytest.approx((up[0] - down[0]) / (2 * h), rel=1e-6, abs=1e-6)
            np.testing.assert_allclose(hessian[group], (up[1] - down[1]) / (2 * h), rtol=1e-6, atol=1e-6)


def test_one_decomposition_gives_the_deviance_of_every_ratio():
    found = equations()
    one = _OneGroup(found)
    for at in np.linspace(-6, 6, 7):
        deviance, gradient, _ = found.deviance(np.array([at]))
        assert one.deviance(np.array([at]))[0] == pytest.approx(deviance, rel=1e-10)
        assert one.slope(at) == pytest.approx(gradient[0], rel=1e-8, abs=1e-8)


def test_the_likelier_of_two_modes_is_found():
    """Nearly as many models as pairs: effects that explain everything are often as likely as hardly any."""
    several = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        first, second = (random.integers(0, 12, 12) + shift for shift in (0, 1))
        design = np.eye(13)[first] + np.eye(13)[second]
        one = _OneGroup(_Equations(design, np.zeros(13, dtype=int), random.standard_normal(12), np.ones(12)))
        values = one.deviance(np.linspace(*np.log(RATIOS), 300))
        around = np.concatenate([[np.inf], values, [np.inf]])
        several += ((values < around[:-2]) & (values < around[2:])).sum() > 1
        assert one.most_likely()[1] <= values.min() + 1e-9
    assert several


def test_coefficients_are_those_of_the_dense_formula():
    random = np.random.default_rng(4)
    design = random.standard_normal((30, 5))
    y = 3 + design @ random.standard_normal(5) + 0.5 * random.standard_normal(30)
    found = fit_mixed(design, np.array([0, 0, 1, 1, 1]), y)
    prior = np.diag(found.ratios[[0, 0, 1, 1, 1]])
    inverse = np.linalg.inv(np.eye(30) + design @ prior @ design.T)
    mean = (inverse @ y).sum() / inverse.sum()
    assert found.mean == pytest.approx(mean, rel=1e-9)
    np.testing.assert_allclose(found.coefficients, prior @ design.T @ inverse @ (y - mean), rtol=1e-8, atol=1e-12)


def test_a_group_that_explains_nothing_is_shrunk_away():
    random = np.random.default_rng(5)
    useful, useless = random.standard_normal((60, 4)), random.standard_normal((60, 20))
    y = useful @ [1.0, -1.0, 2.0, 0.5] + 0.1 * random.standard_normal(60)
    found = fit_mixed(np.hstack([useful, useless]), np.repeat([0, 1], [4, 20]), y)
    assert found.variances[1] < 1e-3 * found.variances[0]


def test_effects_are_recovered():
    pairs, y, own = simulate()
    model = TaskEffectsRegressor().fit(np.zeros((len(y), 1)), y, pairs)
    truth = np.array([own[name] for name in model.tasks_])
    assert np.abs(model.effects_ - (truth - truth.mean())).max() < 0.03
    assert np.sqrt(model.task_variance_) == pytest.approx(0.1, rel=0.5)
    assert np.sqrt(model.residual_variance_) == pytest.approx(0.02, rel=0.3)


def test_one_failed_merge_does_not_count_against_its_models():
    pairs, y, _ = simulate()
    failed = y.copy()
    failed[7] -= 0.6
    without = np.arange(len(y)) != 7
    zeros = np.zeros((len(y), 1))
    clean = TaskEffectsRegressor().fit(zeros[without], y[without], pairs[without]).predict(zeros, pairs)
    robust = TaskEffectsRegressor().fit(zeros, failed, pairs).predict(zeros, pairs)
    assert np.abs(robust - clean).max() < 0.01
    normal = TaskEffectsRegressor(dof=1e6).fit(zeros, failed, pairs).predict(zeros, pairs)
    assert np.abs(normal - clean).max() > 0.05


def test_weights_of_normal_residuals_stay_near_each_other():
    _, y, _ = simulate()
    model = fit_robust(np.zeros((len(y), 1)), np.array([0]), y, dof=1e6)
    np.testing.assert_allclose(model.weights, 1, atol=1e-4)
    assert model.mean == pytest.approx(y.mean(), rel=1e-6)


def test_a_task_in_one_pair_is_pulled_to_the_mean_and_an_unseen_one_is_there():
    pairs, y, _ = simulate()
    rare = (pairs == "t11").any(1)
    rows = np.flatnonzero(~rare | (pairs[:, 0] == "t00"))
    zeros = np.zeros((len(rows), 1))
    model = TaskEffectsRegressor().fit(zeros, y[rows], pairs[rows])
    raised = y + 0.3 * (pairs == ["t00", "t11"]).all(1)
    moved = TaskEffectsRegressor(dof=1e6).fit(zeros, raised[rows], pairs[rows])
    assert 0 < moved.effects_[-1] - model.effects_[-1] < 0.3
    asked = [("t04", "t05"), ("t04", "t11"), ("t04", "new"), ("new", "newer")]
    sd = model.predict_sd(np.zeros((4, 1)), asked)
    assert (np.diff(sd) > 0).all()
    unknown = 2 * model.task_variance_ + model.residual_variance_ + model.covariance_[0, 0]
    assert sd[3] ** 2 == pytest.approx(unknown, rel=1e-9)
    assert model.predict(np.zeros((4, 1)), asked)[3] == pytest.approx(model.mean_)


def test_metrics_enter_where_they_explain_what_effects_leave():
    pairs, y, _ = simulate(noise=0.01)
    random = np.random.default_rng(1)
    X = random.standard_normal((len(y), 4))
    model = TaskEffectsRegressor(metrics=True).fit(X, y + 0.03 * X[:, 1], pairs)
    assert model.metrics_enter_
    assert int(np.argmax(np.abs(model.coef_))) == 1
    assert model.coef_[1] == pytest.approx(0.03 * X[:, 1].std(), rel=0.2)
    shuffled = TaskEffectsRegressor(metrics=True).fit(X, y, pairs)
    assert not shuffled.metrics_enter_
    np.testing.assert_array_equal(shuffled.predict(X, pairs), TaskEffectsRegressor().fit(X, y, pairs).predict(X, pairs))


def test_chance_lets_metrics_in_as_seldom_as_the_level_says():
    entered = 0
    for seed in range(40):
        pairs, y, _ = simulate(tasks=8, seed=seed)
        X = np.random.default_rng([seed, 1]).standard_normal((len(y), 3))
        entered += TaskEffectsRegressor(metrics=True, level=0.05).fit(X, y, pairs).metrics_enter_
    assert entered <= 6
