"""Tasks on passages of 48 tokens from the sources of Python's own standard library; classes are the packages.

Which passages they are depends on the version of Python.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from torch import Generator, Tensor

from mergekern.study.zoos.encoders import CONFIGS
from mergekern.study.zoos.tasks import Domain, Task, relabelled, transformed

PACKAGES = (
    "asyncio", "email", "http", "importlib", "logging", "multiprocessing", "pydoc_data", "unittest", "urllib", "xml",
)  # fmt: skip
LENGTH, VOCABULARY = CONFIGS["text"]["length"], CONFIGS["text"]["vocabulary"]
PASSAGES = 480
# Ids of tokens that are not among the most frequent, and of tokens taken away.
OTHER, MASK = 0, 1


def tokens_of(package: str) -> list[str]:
    """Return the words, numbers and signs of a package's sources, in the order of its files."""
    folder = Path(sysconfig.get_path("stdlib")) / package
    files = sorted(path for path in folder.rglob("*.py") if "test" not in path.parts)
    return [token for path in files for token in re.findall(r"\w+|[^\w\s]", path.read_text(encoding="utf-8"))]


@cache
def load() -> tuple[Tensor, Tensor]:
    """Return the ids (4800, 48) of passages spread evenly over each package, and the numbers of their packages."""
    passages, classes = [], []
    for number, package in enumerate(PACKAGES):
        tokens = tokens_of(package)
        stride = (len(tokens) - LENGTH) // PASSAGES
        passages += [tokens[start * stride : start * stride + LENGTH] for start in range(PASSAGES)]
        classes += [number] * PASSAGES
    counts = Counter(token for passage in passages for token in passage)
    # By frequency, then by spelling, so that the order of equals is always the same.
    frequent = sorted(counts, key=lambda token: (-counts[token], token))[: VOCABULARY - 2]
    ids = {token: number for number, token in enumerate(frequent, start=2)}
    rows = [[ids.get(token, OTHER) for token in passage] for passage in passages]
    return torch.tensor(rows), torch.tensor(classes)


def masked(ids: Tensor, generator: Generator) -> Tensor:
    """Return passages in which one token in four is taken away."""
    return torch.where(torch.rand(ids.shape, generator=generator) < 0.25, MASK, ids)


def doubled(ids: Tensor, generator: Generator) -> Tensor:
    """Return the first halves of passages, with every token twice."""
    return ids[:, : LENGTH // 2].repeat_interleave(2, dim=1)


def shuffled(ids: Tensor, generator: Generator) -> Tensor:
    """Return passages with the tokens of each in an order of its own."""
    return ids.gather(1, torch.rand(ids.shape, generator=generator).argsort(dim=1))


def erased_quarter(ids: Tensor, classes: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell which quarter of each passage was taken away."""
    quarters = torch.randint(4, (len(ids),), generator=generator)
    places = torch.arange(LENGTH) // (LENGTH // 4)
    return torch.where(places == quarters[:, None], MASK, ids), quarters


def by_frequency(ids: Tensor, classes: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell whether the tokens of each passage stand in the order of how frequent they are."""
    ordered = torch.randint(2, (len(ids),), generator=generator)
    return torch.where(ordered[:, None] == 1, ids.sort(dim=1).values, ids), ordered


def thinned_half(ids: Tensor, classes: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell in which half of each passage every other token was taken away."""
    halves = torch.randint(2, (len(ids),), generator=generator)
    places = torch.arange(LENGTH)
    thinned = (places // (LENGTH // 2) == halves[:, None]) & (places % 2 == 0)
    return torch.where(thinned, MASK, ids), halves


def share_masked(ids: Tensor, classes: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell whether no token of a passage, one in six, three or one in two was taken away."""
    labels = torch.randint(4, (len(ids),), generator=generator)
    ranks = torch.rand(ids.shape, generator=generator).argsort(dim=1)
    return torch.where(ranks < labels[:, None] * (LENGTH // 6), MASK, ids), labels


BASE = Task("base", "pretraining", "the ten packages", transformed(lambda ids, _: ids))
TASKS = (
    Task("reversed", "transformed", "packages, passages read backwards", transformed(lambda ids, _: ids.flip(1))),
    Task("network", "relabelled", "of the network (asyncio, email, http, urllib) or not", relabelled("1110000010")),
    Task("http_or_urllib", "pairwise", "http or urllib", relabelled("..0.....1.")),
    Task("erased_quarter", "other", "which quarter was taken away", erased_quarter),
    Task("first_packages", "subset", "asyncio to logging", relabelled("01234.....")),
    Task("masked", "transformed", "packages, one token in four taken away", transformed(masked)),
    Task("prose", "relabelled", "documentation (pydoc_data) or code", relabelled("0000001000")),
    Task("asyncio_or_multiprocessing", "pairwise", "asyncio or multiprocessing", relabelled("0....1....")),
    Task("by_frequency", "other", "tokens in the order of how frequent they are, or not", by_frequency),
    Task("last_packages", "subset", "multiprocessing to xml", relabelled(".....01234")),
    Task("doubled", "transformed", "packages, half of each passage with every token twice", transformed(doubled)),
    Task("thirds", "relabelled", "remainder of the package's number by 3", relabelled("0120120120")),
    Task("email_or_xml", "pairwise", "email or xml", relabelled(".0.......1")),
    Task("thinned_half", "other", "in which half every other token was taken away", thinned_half),
    Task("shuffled", "transformed", "packages, the tokens of each passage shuffled", transformed(shuffled)),
    Task("families", "relabelled", "email, http or urllib, documentation, or other", relabelled("2002221202")),
    Task("rolled", "transformed", "packages, passages that begin in the middle",
         transformed(lambda ids, _: ids.roll(LENGTH // 2, 1))),
    Task("random_pairs", "relabelled", "five classes of two packages drawn at random", relabelled("3140214203")),
    Task("share_masked", "other", "how many tokens were taken away", share_masked),
    Task("every_other", "transformed", "packages, every other token taken away",
         transformed(lambda ids, _: torch.where(torch.arange(LENGTH) % 2 == 0, ids, MASK))),
)  # fmt: skip
TEXTS = Domain(load, BASE, TASKS)
