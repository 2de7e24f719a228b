"""The two files that measuring fills in: scores of merges, and what is known of the single models."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pandas as pd

from mergekern.checkpoints import Zoo
from mergekern.errors import EvaluationError, OptionError, did_you_mean
from mergekern.evaluation.rows import MERGE, REMARKS, Merge, Row, RowFile, normalized, read_pairs, unique_pairs
from mergekern.merging.registry import EVERY_METHOD, find_method
from mergekern.merging.request import Request

OWN, BASE = "own_accuracy", "base_accuracy"
Methods = str | Iterable[str] | None
Pairs = str | os.PathLike[str] | Iterable[Sequence[str]] | None


class Files:
    """Scores of merges and of single models, each row of which is written when it is measured.

    Args:
        scores: path of the scores of merges; None for memory only.
        models: path of the list of models; None for memory only.
        score: name of the column of scores.
        names: names of the models of the zoo.

    Attributes:
        scores, models: the rows.
        failures: why something has no score, by its name.

    Raises:
        EvaluationError: a file cannot be read, or has a merge or a model twice.
    """

    def __init__(self, scores: Path | None, models: Path | None, score: str, names: Sequence[str]) -> None:
        self._score, self._names = score, tuple(names)
        self._of_tasks = (f"{score}_a", f"{score}_b")
        self._numbers = (score, normalized(score), *self._of_tasks)
        self.failures: dict[str, str] = {}
        self.scores = RowFile(scores, (*MERGE, *self._numbers, REMARKS), self._numbers)
        self.models = RowFile(models, ("model", OWN, BASE, REMARKS), (OWN, BASE))
        self._rows = {_key(row): row for row in self.scores.rows}
        self._models = {row["model"]: row for row in self.models.rows}
        for file, found in ((self.scores, self._rows), (self.models, self._models)):
            if len(found) < len(file.rows):
                raise EvaluationError(f"{file.path}: has a row twice; keep one of them")
        for name in self._names:
            if name not in self._models:
                self._models[name] = self.models.add({"model": name})

    def want(self, methods: Methods, pairs: Pairs, options: Mapping[str, Mapping[str, Any]]) -> list[Row]:
        """Return the rows of the merges that are wanted and have no score; those that are not there are added.

        Without methods and pairs, all rows of the file are wanted.

        Raises:
            EvaluationError: it is not said by which methods to merge, or a row has no method.
            OptionError: an unknown method, model or option.
        """
        self._options = options
        given = [methods] if isinstance(methods, str) else None if methods is None else list(methods)
        wanted = self._wanted(given, pairs)
        rows = self.scores.rows if wanted is None else [self._row(merge) for merge in wanted]
        rows = [row for row in rows if not row[self._score].strip()]
        for row in rows:
            where = f"{self.scores.path or 'the merges'}: {row['model_a']}+{row['model_b']}"
            if not row["method"]:
                raise EvaluationError(
                    f"{where} has no method: write one into its row, or give the file as pairs, with methods (--pairs, "
                    "--methods)"
                )
            if row["method"] not in EVERY_METHOD:
                known = f"{did_you_mean(row['method'], EVERY_METHOD)}; known: {', '.join(EVERY_METHOD)}"
                raise OptionError(f"{where}: unknown merge method {row['method']!r}{known}")
            for name in (row["model_a"], row["model_b"]):
                if name not in self._names:
                    raise OptionError(f"{where}: no model {name!r} in the zoo{did_you_mean(name, self._names)}")
            if row["model_a"] == row["model_b"]:
                raise OptionError(f"{where}: a pair is of two models")
        for method in dict.fromkeys([*options, *(row["method"] for row in rows)]):
            find_method(method, options.get(method))
        return rows

    def _row(self, merge: Merge) -> Row:
        """Return the row of a merge, which is added where there is none."""
        row = dict(zip(MERGE, merge, strict=True))
        if _key(row) not in self._rows:
            self._rows[_key(row)] = self.scores.add(row)
        return self._rows[_key(row)]

    def _wanted(self, methods: list[str] | None, pairs: Pairs) -> list[Merge] | None:
        """Return the merges that are asked for; None for those of the file."""
        listed = _listed(pairs)
        if methods is None and listed and all(method for method, _, _ in listed):
            return listed
        if methods is None and listed is None and self.scores.rows:
            return None
        if not methods:
            raise EvaluationError(
                "by which methods are the pairs to be merged? Give methods (--methods), such as weight_average,ties"
            )
        if listed is None:
            listed = [("", row["model_a"], row["model_b"]) for row in self.scores.rows] or None
        found = list(combinations(self._names, 2)) if listed is None else list(unique_pairs(listed))
        return [(method, *pair) for method, pair in product(methods, found)]

    def models_without(self, column: str) -> list[str]:
        """Return the names of models without a score of their own, or of the base."""
        return [name for name in self._names if not self._models[name][column].strip()]

    def has_scores(self) -> bool:
        """Tell whether the base or any model has a score."""
        return any(self._models[name][column].strip() for name in self._names for column in (OWN, BASE))

    def request(self, row: Row, zoo: Zoo) -> Request:
        """Return the merge of a row."""
        method, resolved = find_method(row["method"], self._options.get(row["method"]))
        models = tuple(sorted(zoo.model_names.index(row[column]) for column in MERGE[1:]))
        return Request(models, method, resolved, (1.0, 1.0))

    def set_models(self, column: str, found: Mapping[str, float | str]) -> list[str]:
        """Write the scores of the base or of a model on the tasks of models; return the reasons why there are none."""
        what = {OWN: "model", BASE: "the base for"}[column]
        reasons = []
        for name, score in found.items():
            row = self._models[name]
            row[column] = "" if isinstance(score, str) else repr(score)
            if isinstance(score, str):
                reasons.append(score)
                self.failures[f"{what} {name}"] = score
            row[REMARKS] = "; ".join(
                f"{column_of}: {self.failures[key]}"
                for column_of, key in ((OWN, f"model {name}"), (BASE, f"the base for {name}"))
                if key in self.failures
            )
        if self.has_scores():
            self.models.save()
        return reasons

    def set_merge(self, row: Row, found: Sequence[float | str]) -> None:
        """Write the scores of a merge on the tasks of its two models."""
        numbers = [score for score in found if not isinstance(score, str)]
        names = [row[column] for column in MERGE[1:]]
        for column, score in zip(self._of_tasks, found, strict=True):
            row[column] = "" if isinstance(score, str) else repr(score)
        row[REMARKS] = next((score for score in found if isinstance(score, str)), "")
        row[self._score] = repr(sum(numbers) / len(names)) if len(numbers) == len(names) else ""
        own = [float(self._models[name][OWN] or 0) for name in names]
        is_possible = row[self._score] and all(score > 0 for score in own)
        ratios = [score / alone for score, alone in zip(numbers, own, strict=True)] if is_possible else []
        row[normalized(self._score)] = repr(sum(ratios) / len(ratios)) if ratios else ""
        if row[REMARKS]:
            self.failures[f"{row['method']} of {'+'.join(names)}"] = row[REMARKS]
        self.scores.save()

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the scores of merges, and those of models, with NaN where there is none."""
        scores = pd.DataFrame(self.scores.rows, columns=self.scores.columns)
        models = pd.DataFrame(self.models.rows, columns=self.models.columns)
        for frame, columns in ((scores, self._numbers), (models, (OWN, BASE))):
            for column in columns:
                frame[column] = [float(text) if text.strip() else float("nan") for text in frame[column]]
        return scores, models


def _key(row: Row) -> tuple[str, frozenset[str]]:
    return row["method"], frozenset((row["model_a"], row["model_b"]))


def _listed(pairs: Pairs) -> list[Merge] | None:
    """Return the merges that are listed, with "" as the method where none is named; None for every pair."""
    if pairs is None:
        return None
    if isinstance(pairs, str | os.PathLike):
        return read_pairs(Path(pairs))
    found = [tuple(map(str, pair)) for pair in pairs]
    if wrong := next((pair for pair in found if len(pair) not in (2, 3)), None):
        raise EvaluationError(f"a pair is the names of two models, perhaps after that of a method, not {wrong!r}")
    return [(pair[0] if len(pair) == 3 else "", pair[-2], pair[-1]) for pair in found]
