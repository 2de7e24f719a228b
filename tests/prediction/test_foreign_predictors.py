"""Predictor files that others changed: one short error each, at once."""

import json

import pytest

from mergekern import PredictionError
from mergekern.prediction import MergePredictor
from tests.support.measurements import make_scores, make_table


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The documents of a linear predictor and of a forest."""
    table, folder = make_table(tasks=8), tmp_path_factory.mktemp("predictors")
    found = {}
    for kind, options in {"linear": None, "forest": {"n_estimators": 3}}.items():
        MergePredictor.fit(table, make_scores(table), "tsv", kind, options=options).save(folder / "p.json")
        found[kind] = (folder / "p.json").read_text()
    return found


def loops(document):
    nodes = document["estimator"]["fitted"]["nodes_"]["entries"]
    for side in ("left", "right"):
        nodes[side]["values"] = [0 if at else 1 for at in range(len(nodes[side]["values"]))]


def few_weights(document):
    for array in document["estimator"]["fitted"].values():
        if isinstance(array, dict) and array.get("dtype") == "float64" and len(array["values"]) > 1:
            array.update(values=array["values"][:1], shape=[1])


CHANGES = {
    "ways without end": ("forest", loops, "child"),
    "a claimed shape": ("linear", lambda d: d["estimator"]["fitted"].update(
        coef_={"dtype": "float64", "shape": [10**12], "values": []}), "damaged"),
    "too few weights": ("linear", few_weights, "damaged"),
    "another class": ("linear", lambda d: d["estimator"].update({"class": "ClippedScaler"}), "damaged"),
    "another kind": ("linear", lambda d: d.update(kind="forest"), "is not what a predictor of kind 'forest' is"),
    "a pair twice": ("linear", lambda d: d["measured"].append([*d["measured"][0][1::-1], 0.5]), "twice"),
    "no pair": ("linear", lambda d: d.update(measured=[]), "no pairs"),
    "a score of text": ("linear", lambda d: d["measured"].__setitem__(0, ["a", "b", "0.5"]), "two names and a score"),
    "text as a width": ("linear", lambda d: d["intervals"].update(widths=["1", None, None]), "intervals.widths.0"),
    "two widths": ("linear", lambda d: d["intervals"].update(widths=[1.0, 2.0]), "intervals.widths"),
    "a level of 2": ("linear", lambda d: d["intervals"].update(level=2.0), "intervals.level"),
    "ranges of others": ("linear", lambda d: d.update(ranges={"x": [0.0, 1.0]}), "ranges"),
    "other regimes": ("linear", lambda d: d["validation"].popitem(), "validation"),
    "r of text": ("linear", lambda d: next(iter(d["validation"].values())).update(val_r_mean="x"), "validation"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "word"), CHANGES.values(), ids=CHANGES)
def test_a_changed_predictor_is_refused(saved, tmp_path, kind, change, word):
    document = json.loads(saved[kind])
    change(document)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(document))
    with pytest.raises(PredictionError, match=word) as caught:
        MergePredictor.load(path)
    assert len(str(caught.value)) < 500 + len(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [
    '{"format": ' + "[" * 100_000, '{"format": "a", "format": "b"}', "[]", "", "\ufeff", "1" * 10_000,
], ids=["brackets", "twice", "a list", "nothing", "a mark", "digits"])  # fmt: skip
def test_what_is_no_predictor_is_refused(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(PredictionError, match=r"p\.json: not a") as caught:
        MergePredictor.load(tmp_path / "p.json")
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
