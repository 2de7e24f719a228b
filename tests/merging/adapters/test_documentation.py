"""docs/adapters.md: its example runs, and its table has every combination with the options that it takes."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.merging.adapters.registry import COMBINATIONS
from tests.merging.adapters.test_merge_adapters import SIZES, delta, write

PAGE = (Path(__file__).parents[3] / "docs" / "adapters.md").read_text()


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(example, "docs/adapters.md", "exec"), {})
    assert re.fullmatch(r"of rank 3: \d+\.\d% of the length of the change is lost\n", capsys.readouterr().out)
    assert sorted(path.name for path in Path("merged").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "mergekern.json",
    ]  # fmt: skip


def test_the_table_has_every_combination_and_its_options():
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]
    found = {
        name.strip(" `"): (ranks.split(";")[0].strip(), tuple(re.findall(r"`(\w+)`", options)))
        for name, _, ranks, options, _ in (row for row in rows if len(row) == 5)
    }
    expected = {
        name: ("equal" if combination.of == "factors" else "any", combination.options)
        for name, combination in COMBINATIONS.items()
    }
    assert found == expected


def test_cat_on_the_base_is_task_arithmetic_of_the_adapters(tmp_path):
    folders = [write(tmp_path / name, seed, lora_alpha=3) for seed, name in enumerate("ab")]
    base = {f"{module}.weight": torch.ones(shape) for module, shape in SIZES.items()}
    save_file(base, tmp_path / "base.safetensors")
    weights = [0.5, -2.0]
    mergekern.merge_adapters(folders, "cat", weights=weights, output=tmp_path / "cat")
    merged = tmp_path / "merged.safetensors"
    mergekern.merge(
        folders,
        tmp_path / "base.safetensors",
        "task_arithmetic",
        options={"scale": 1.0},
        weights=weights,
        output=merged,
    )
    for module in SIZES:
        expected = load_file(merged)[f"{module}.weight"].double()
        torch.testing.assert_close(1 + delta(tmp_path / "cat", module), expected, rtol=0, atol=1e-5)
