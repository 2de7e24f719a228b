"""Find out which two of six models to merge, by which method, and how sure that is."""

# %% Six models and their base. Replace this cell by a folder of your own models.
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

import mergekern
from mergekern.prediction import MergePredictor, plan_measurements, read_scores, recommend

torch.manual_seed(0)
work = TemporaryDirectory()
folder = Path(work.name)
images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = images.float().reshape(-1, 8, 8) / 16
tasks = {
    "upright": images,
    "mirrored": images.flip(2),
    "upside_down": images.flip(1),
    "turned": images.rot90(1, (1, 2)),
    "inverted": 1 - images,
    "dim": images / 2,
}
held_out = torch.arange(len(labels)) % 4 == 0


def build() -> nn.Module:
    """Return a new network, whose tensors have the names of the checkpoints."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def train(network: nn.Module, inputs: torch.Tensor, steps: int) -> None:
    """Train a network on the images that are not held out."""
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs[~held_out]), labels[~held_out]).backward()
        optimizer.step()


zoo = folder / "zoo"
zoo.mkdir()
base = build()
train(base, images, steps=30)
save_file(base.state_dict(), zoo / "base.safetensors")
for name, inputs in tasks.items():
    tuned = build()
    tuned.load_state_dict(base.state_dict())
    train(tuned, inputs, steps=40)
    save_file(tuned.state_dict(), zoo / f"{name}.safetensors")

# %% The metrics of all 15 pairs. They cost no evaluation.
table = mergekern.compute_all(zoo)
print(table.ranked("task_vector_l2_distance")["task_vector_l2_distance"].head(3))


# %% Metrics alone are weak predictors. So measure a few merges by the number that matters to you.
def accuracy(network: nn.Module, task: str) -> float:
    """Return the accuracy of a network on the held-out images of a task."""
    with torch.no_grad():
        return (network(tasks[task][held_out]).argmax(1) == labels[held_out]).float().mean().item()


methods = ["weight_average", "tsv"]
plan = list(plan_measurements(table.models, k=8).index)
measured = mergekern.measure_merges(
    zoo, evaluate=accuracy, methods=methods, pairs=plan, scores=folder / "scores.csv", model=build
)
print(measured.scores.groupby("method", sort=False)["accuracy"].mean())

# %% Predict the other pairs, and decide. Each prediction has an interval.
predictors = [
    MergePredictor.fit(table, read_scores(folder / "scores.csv", method), method, "additive") for method in methods
]
decisions = recommend(predictors, table)
print(decisions[["method", "score", "low", "high", "measured"]].head(5))

# %% Make the merge that promises most. The file has the names, shapes and dtypes of the base.
first, second = decisions.index[0]
method = decisions["method"].iloc[0]
models = {name: zoo / f"{name}.safetensors" for name in (first, second)}
mergekern.merge(models, zoo / "base.safetensors", method, output=folder / "merged.safetensors")
print(f"{first} and {second}, merged by {method}: {(folder / 'merged.safetensors').stat().st_size} bytes")

# %%
work.cleanup()
