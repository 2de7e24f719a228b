"""The merges that the published research code makes, tensor by tensor and as a whole."""

import numpy as np
import pytest
import torch

import mergekern
from mergekern import METHODS
from mergekern.merging.recipe import merge_matrix
from tests.golden.zoo import GOLDEN
from tests.merging.zoos import mixed

GROUPS = {"pair01": range(2), "all5": range(5)}
# From golden/README.md. The methods by singular vectors are listed; the others are held to 1e-5.
TOLERANCE = {"tsv": 1e-4, "isotropic": 1e-4, "isotropic_cts": 1e-4}
CASES = {name: (name, {}) for name in METHODS if name not in ("dare", "dare_ties")}
CASES["dare_magnitude"] = ("dare", {"mask": "magnitude"})


def expected(group, case):
    with np.load(GOLDEN / f"merges_mixed_{group}.npz") as values:
        found = {key.split("/", 1)[1]: values[key] for key in values.files if key.split("/", 1)[0] == case}
    assert len(found) >= 5
    return found


def unskewed(published, base, tuned):
    """Return the mean, where the published code has a mean that depends on the order of the models.

    It averages tensors that are not matrices into the first task vector, which it then averages once more: the first
    model counts 1/n², every other (n + 1)/n². The rule is the mean, as its other methods have it.
    """
    n = len(tuned)
    skewed = base + sum((1 if i == 0 else n + 1) / n**2 * (model - base) for i, model in enumerate(tuned))
    np.testing.assert_allclose(published, skewed, rtol=0, atol=1e-7)
    return np.mean(tuned, axis=0, dtype=np.float64)


@pytest.mark.parametrize("max_memory", [None, 3000], ids=["whole", "in blocks"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", GROUPS)
def test_agrees_with_the_published_code(group, case, max_memory):
    base, models = mixed(GROUPS[group])
    method, options = CASES[case]
    merged = mergekern.merge(models, base, method, max_memory=max_memory, **options)
    assert list(merged) == list(base)
    assert torch.equal(merged["embed.position_ids"], torch.from_numpy(base["embed.position_ids"]))
    for name, values in expected(group, case).items():
        assert merged[name].dtype == torch.float32
        if case == "isotropic" and values.ndim != 2:
            values = unskewed(values, base[name], [model[name] for model in models.values()])
        np.testing.assert_allclose(merged[name], values, rtol=0, atol=TOLERANCE.get(method, 1e-5), err_msg=name)


@pytest.mark.parametrize("case", [*CASES, "dare", "dare_ties"])
def test_the_pure_function_is_what_is_streamed(case):
    base, models = mixed(range(3))
    name, options = CASES.get(case, (case, {}))
    method = METHODS[name]
    resolved = method.resolve(options)
    if name == "tall_masks":
        resolved["models"] = 3
    if name in ("dare", "dare_ties") and resolved["mask"] == "random":
        resolved["rate"] = 0.0  # DARE's masks come from other keys here.
        options = {**options, "rate": 0.0}
    merged = mergekern.merge(models, base, name, **options)
    for tensor in ("blocks.0.attn.weight", "blocks.0.attn.bias", "embed.conv.weight", "head.small.weight"):
        origin = torch.from_numpy(base[tensor]).double()
        deltas = [torch.from_numpy(model[tensor]).double() - origin for model in models.values()]
        values = merge_matrix(origin, deltas, method, None, **resolved)
        torch.testing.assert_close(merged[tensor], values.float(), rtol=0, atol=1e-7)
