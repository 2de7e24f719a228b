"""RegMean and Fisher-weighted averaging: by hand, against what defines them, and in whole merges of models that run."""

import json
import os
import signal
import tempfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

import mergekern
from mergekern._internal.claims import Workspace
from mergekern.cli import main
from mergekern.errors import NonFiniteError, OptionError, OutputError
from mergekern.kernels import dispatch
from mergekern.merging.fisher import fisher
from mergekern.merging.regmean import regmean
from tests.support import faults
from tests.support.device import backend

NAMES = ("a", "b", "c")
WEIGHTS = [1.0, 0.5, 2.0]
CLASSES, WIDTH = 3, 4
# Of each model; means over samples, not sums, are to count.
SAMPLES = (30, 12, 21)


class Transposed(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as that of GPT-2 in transformers."""

    def __init__(self):
        super().__init__()
        self.nf = WIDTH
        self.weight, self.bias = nn.Parameter(torch.empty(5, WIDTH)), nn.Parameter(torch.empty(WIDTH))

    def forward(self, inputs):
        return inputs @ self.weight + self.bias


Transposed.__name__ = "Conv1D"


class Encoder(nn.Module):
    """Two layers of one kind, one of another, and two that share a weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 5), Transposed(), nn.Linear(WIDTH, WIDTH)
        self.norm, self.tied = nn.LayerNorm(WIDTH), nn.Bilinear(1, WIDTH, WIDTH, bias=False)

    def forward(self, inputs):
        hidden = self.norm(self.third(self.second(self.first(inputs).tanh()).tanh()))
        return hidden + self.tied(torch.ones(len(hidden), 1).to(hidden), hidden)


def build():
    return Encoder()


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def zoo():
    shapes = {name: values.shape for name, values in Encoder().state_dict().items()}
    base = {name: draw(*shape, seed=index) for index, (name, shape) in enumerate(shapes.items())}
    tuned = {
        model: {name: values + 0.3 * draw(*values.shape, seed=10 * (1 + place) + index)
                for index, (name, values) in enumerate(base.items())}
        for place, model in enumerate(NAMES)
    }  # fmt: skip
    return base, tuned


@pytest.fixture(scope="module")
def calibration():
    tasks = {
        name: (draw(SAMPLES[place], 6, seed=50 + place), torch.arange(SAMPLES[place]) % CLASSES,
               (draw(CLASSES, WIDTH, seed=60 + place), None))
        for place, name in enumerate(NAMES)
    }  # fmt: skip
    return mergekern.Calibration(Encoder, tasks, "third", dtype=torch.float64, activation_batch_size=7)


def built(state):
    encoder = Encoder().double()
    encoder.load_state_dict(state)
    return encoder


def inputs_of(encoder, samples):
    """Return what goes into each layer."""
    first = encoder.first(samples).tanh()
    return {"first.weight": samples, "second.weight": first, "third.weight": encoder.second(first).tanh()}


def mean(tuned, name):
    return sum(w * tuned[model][name] for w, model in zip(WEIGHTS, NAMES, strict=True)) / sum(WEIGHTS)


def test_regmean_is_the_least_squares_of_all_outputs(zoo, calibration):
    base, tuned = zoo
    options = {"options": {"alpha": 1.0}, "weights": WEIGHTS, "calibration": calibration}
    merged = mergekern.merge(tuned, base, "regmean", **options)
    every = {model: inputs_of(built(tuned[model]), calibration.tasks[model].inputs) for model in NAMES}
    for name in ("first.weight", "second.weight", "third.weight"):
        rows, outputs = [], []
        for weight, model in zip(WEIGHTS, NAMES, strict=True):
            of_columns = tuned[model][name] if name == "second.weight" else tuned[model][name].T
            inputs = every[model][name].detach()
            rows.append(inputs * (weight / len(inputs)) ** 0.5)
            outputs.append(rows[-1] @ of_columns)
        expected = torch.linalg.lstsq(torch.cat(rows), torch.cat(outputs)).solution
        found = merged[name] if name == "second.weight" else merged[name].T
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for name in ("first.bias", "norm.weight", "tied.weight"):
        torch.testing.assert_close(merged[name], mean(tuned, name), rtol=0, atol=1e-12)


def test_fisher_is_the_expectation_over_the_models_own_classes(zoo, calibration):
    base, tuned = zoo
    options = {"floor": 1e-3, "normalize": True}
    merged = mergekern.merge(tuned, base, "fisher", options=options, weights=WEIGHTS, calibration=calibration)
    found = []
    for model in NAMES:
        encoder, task = built(tuned[model]), calibration.tasks[model]
        sums = {name: torch.zeros_like(values) for name, values in encoder.named_parameters()}
        for sample in task.inputs:
            likelihoods = (encoder(sample[None]) @ task.head[0].T)[0].log_softmax(0)
            for likelihood in likelihoods:
                encoder.zero_grad()
                likelihood.backward(retain_graph=True)
                for name, values in encoder.named_parameters():
                    sums[name] += likelihood.exp().item() * values.grad**2 / len(task.inputs)
        found.append(sums)
    lengths = [torch.cat([values.flatten() for values in sums.values()]).norm() for sums in found]
    for name in base:
        shares = [w / n * sums[name].clamp(min=1e-3) for w, n, sums in zip(WEIGHTS, lengths, found, strict=True)]
        expected = sum(s * tuned[model][name] for s, model in zip(shares, NAMES, strict=True)) / sum(shares)
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-6)  # Fisher information is kept in float32


def test_by_hand():
    """Two inputs that go together in the one model, and not in the other: A = [[2, ½], [½, 2]] for alpha = ½."""
    base, deltas = torch.zeros(1, 2), [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    grams = [torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.eye(2)]
    # [1 ½] + [0 1] = [1 1½], times A⁻¹ = [[2, −½], [−½, 2]] / 3.75.
    expected = torch.tensor([[(2 - 0.75) / 3.75, (-0.5 + 3) / 3.75]], dtype=torch.float64)
    torch.testing.assert_close(regmean(base, deltas, grams, alpha=0.5), expected)
    # Where no model has inputs: the mean.
    nothing = [torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 0.0]])]
    for alpha in (0.5, 1.0):
        assert regmean(base, deltas, nothing, alpha=alpha).tolist() == [[0.25, 0.5]]
    # Shares 4 : 1 and 0.1 : 0.1, the floor; normalised by lengths 2 and 1: 2 : 1 and 0.05 : 0.1.
    fishers = [torch.tensor([4.0, 0.0]), torch.tensor([1.0, 0.0])]
    models = [torch.tensor([1.0, 1.0]), torch.tensor([6.0, 4.0])]
    found = fisher(torch.zeros(2), models, fishers, norms=[2.0, 1.0], floor=0.1, normalize=False)
    torch.testing.assert_close(found, torch.tensor([2.0, 2.5], dtype=torch.float64))
    found = fisher(torch.zeros(2), models, fishers, norms=[2.0, 1.0], floor=0.1)
    torch.testing.assert_close(found, torch.tensor([8 / 3, 3.0], dtype=torch.float64))


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_same_bits_in_any_order_and_memory(zoo, calibration, method):
    base, tuned = zoo
    expected = mergekern.merge(tuned, base, method, calibration=calibration)
    backwards = dict(reversed(tuned.items()))
    found = mergekern.merge(backwards, base, method, calibration=calibration, max_memory=700)
    assert all(torch.equal(found[name], values) for name, values in expected.items())


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_on_a_device(zoo, calibration, method, monkeypatch):
    pytest.importorskip("triton")
    base, tuned = zoo
    expected = mergekern.merge(tuned, base, method, weights=WEIGHTS, calibration=calibration, device="cpu")
    kernels = backend()
    monkeypatch.setattr(dispatch, "choose", lambda device: kernels)
    found = mergekern.merge(tuned, base, method, weights=WEIGHTS, calibration=calibration)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-10)


def test_samples_are_asked_for(zoo, calibration, tmp_path):
    base, tuned = zoo
    for method in ("regmean", "fisher"):
        with pytest.raises(OptionError, match=f"{method} needs samples.*--calibration"):
            mergekern.merge(tuned, base, method)
    with pytest.raises(OptionError, match="weights alone"):
        mergekern.merge(tuned, base, "ties", calibration=calibration)
    # What is there already is seen before any model is run.
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError):
        mergekern.merge(tuned, base, "regmean", calibration=None, output=tmp_path / "out.safetensors")
    broken = {**tuned, "a": {**tuned["a"], "first.bias": torch.full((5,), float("inf"))}}
    with pytest.raises(NonFiniteError):
        mergekern.merge(broken, base, "fisher", calibration=calibration)


def test_command_record_and_probes(zoo, calibration, tmp_path):
    base, tuned = zoo
    for name, state in {"base": base, **tuned}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    calibration.save(tmp_path / "samples")
    paths = [str(tmp_path / f"{name}.safetensors") for name in NAMES]
    how = ["--calibration", str(tmp_path / "samples"), "--model-fn", f"{__file__}:build"]
    common = ["--base", str(tmp_path / "base.safetensors"), "--device", "cpu"]
    out = tmp_path / "out.safetensors"
    done = CliRunner().invoke(main, ["merge", *paths, *common, "--method", "regmean", "--out", str(out), *how])
    assert done.exit_code == 0, done.output
    expected = mergekern.merge(tuned, base, "regmean", calibration=calibration)
    assert all(torch.equal(values, expected[name]) for name, values in load_file(out).items())
    record = json.loads((tmp_path / "out.mergekern.json").read_text())
    assert record["calibration"].startswith("xxh3_128:")
    (note,) = (note for note in record["notes"] if note.startswith("regmean averages"))
    assert [name in note for name in ("tied.weight", "first.bias", "second.weight")] == [True, True, False]
    lacking = CliRunner().invoke(
        main, ["merge", *paths, *common, "--method", "fisher", "--out", str(out), "--overwrite"]
    )
    assert "needs samples" in lacking.output
    folder = tmp_path / "all"
    done = CliRunner().invoke(
        main, ["merge-all", *paths, *common, "--methods", "regmean,fisher,ties", "--out", str(folder), *how]
    )
    assert done.exit_code == 0, done.output
    pair = mergekern.merge({n: tuned[n] for n in ("a", "b")}, base, "fisher", calibration=calibration)
    assert torch.equal(load_file(folder / "fisher" / "a+b.safetensors")["first.weight"], pair["first.weight"])
    table = mergekern.merge_probes(tuned, base, calibration=calibration, methods=["regmean", "fisher"], direct=True)
    frame = table.to_pandas()
    assert np.isfinite(frame[["direct_loss_mean[regmean]", "solo_loss_mean[fisher]"]]).all().all()


def test_measured_and_best(zoo, calibration, tmp_path):
    base, tuned = zoo
    merged = mergekern.merge({n: tuned[n] for n in ("b", "c")}, base, "regmean", calibration=calibration)

    def near(state, task):
        return float(1 / (1 + (state["first.weight"] - merged["first.weight"]).abs().max()))

    how = {"evaluate": near, "calibration": calibration, "device": "cpu"}
    found = mergekern.measure_merges(tuned, base, methods=["regmean", "ties"], pairs=[("b", "c")], **how)
    assert dict(zip(found.scores["method"], found.scores["accuracy"], strict=True))["regmean"] == 1.0
    best = mergekern.best_merge(tuned, base, out=tmp_path, budget=6, methods=["regmean", "ties"], page=False, **how)
    assert (best.method, best.models, best.score) == ("regmean", ("b", "c"), 1.0)
    assert torch.equal(load_file(best.path)["first.weight"], merged["first.weight"])
    with pytest.raises(OptionError, match="needs samples"):
        mergekern.best_merge(tuned, base, evaluate=near, out=tmp_path / "new", methods=["fisher"], page=False)
    assert not (tmp_path / "new").exists()


def killed_while_gathering(folder):
    place = Workspace(folder)
    (place.path / "inputs_0.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_run_gathered_is_removed_by_the_next(zoo, calibration, tmp_path, monkeypatch):
    base, tuned = zoo
    process = faults.context.Process(target=killed_while_gathering, args=(tmp_path,))
    process.start()
    process.join()
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def look(_):
        seen.append({path.name for path in tmp_path.iterdir()})

    mergekern.merge(tuned, base, "regmean", calibration=calibration, progress=look)
    assert all(len(names) == 2 and not names & left for names in seen if names)
    assert any(seen)
    assert list(tmp_path.iterdir()) == []
