"""The best merge of six language models, by their perplexity: found with a third of the measurements, and it writes."""

import pandas as pd
import pytest
import torch
import transformers
from click.testing import CliRunner

from mergekern import measure_merges
from mergekern.cli import main
from mergekern.evaluation import Perplexity
from tests.support import trained_zoos as trained

METHODS = ("weight_average", "task_arithmetic", "ties", "tsv")
POINT = 0.01


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return trained.six_languages(tmp_path_factory.mktemp("six") / "zoo")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("texts"), torch.Generator().manual_seed(7)
    for name, how in trained.SIX_STRIDES.items():
        (folder / f"{name}.txt").write_text("\n".join(trained.continued(*how, 8, draw)))
    return folder


def test_within_a_point_of_the_best_for_a_third_of_the_measurements(zoo, texts, tmp_path):
    everything = measure_merges(zoo, evaluate=Perplexity(texts), methods=METHODS).scores
    assert len(everything) == 15 * len(METHODS)
    found = tmp_path / "found"
    given = ["best", zoo, "--evaluate", "perplexity", "--texts", texts, "--methods", ",".join(METHODS), "--budget", 20]
    result = CliRunner().invoke(
        main, [str(each) for each in (*given, "--metrics", "stable_rank", "--no-page", "--out", found)]
    )
    assert result.exit_code == 0, result.output
    scores = pd.read_csv(found / "scores.csv")
    assert len(scores) == len(everything) // 3
    best = scores.loc[scores["inverse_perplexity"].idxmax()]
    assert best["inverse_perplexity"] > everything["inverse_perplexity"].max() - POINT
    # Merges differ by far more than a point, and the best is better than no merge.
    assert everything["inverse_perplexity"].std() > 3 * POINT
    known = pd.read_csv(found / "models.csv")
    assert best["inverse_perplexity"] > known["base_accuracy"].max() + 10 * POINT
    merge = (best["method"], best["model_a"], best["model_b"])
    folder = found / "merged" / merge[0] / "+".join(merge[1:])
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    read = transformers.AutoTokenizer.from_pretrained(folder)
    told, asked = 0, 0
    for name in merge[1:]:
        lines = (texts / f"{name}.txt").read_text().splitlines()
        tokens = read(lines, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            written = model.generate(
                tokens[:, :4], attention_mask=torch.ones(len(lines), 4), max_new_tokens=4, do_sample=False
            )
        told += int((written[:, 4:] == tokens[:, 4:8]).sum())
        asked += 4 * len(lines)
    assert told > asked / 2  # of 27 words
