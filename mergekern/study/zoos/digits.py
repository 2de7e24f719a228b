"""Tasks on the 1,797 handwritten digits of 8×8 pixels that come with scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from mergekern.study.zoos.tasks import Domain, Task, relabelled, transformed


def load() -> tuple[Tensor, Tensor]:
    """Return images (1797, 1, 8, 8) in [0, 1], and the digits that they show."""
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)


def erased_quadrant(images: Tensor, digits: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell which quadrant of each image was erased."""
    quadrants = torch.randint(4, (len(images),), generator=generator)
    kept = 1 - nn.functional.one_hot(quadrants, 4).float().view(-1, 1, 2, 2)
    return images * nn.functional.interpolate(kept, images.shape[-2:]), quadrants


def heavier_half(images: Tensor, digits: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell whether the lower half holds more ink than the upper half."""
    upper, lower = images.sum(dim=(1, 3)).unflatten(1, (2, -1)).sum(dim=-1).unbind(dim=1)
    return images, (lower > upper).long()


def quarter_turns(images: Tensor, digits: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell by how many quarters each image was turned."""
    turns = torch.randint(4, (len(images),), generator=generator)
    turned = [image.rot90(turn, (-2, -1)) for image, turn in zip(images, turns.tolist(), strict=True)]
    return torch.stack(turned), turns


BASE = Task("base", "pretraining", "the ten digits", transformed(lambda images, generator: images))
TASKS = (
    Task("rotated", "transformed", "digits rotated by 90°", transformed(lambda images, _: images.rot90(1, (-2, -1)))),
    Task("parity", "relabelled", "even or odd", relabelled("0101010101")),
    Task("three_or_eight", "pairwise", "3 or 8", relabelled("...0....1.")),
    Task("erased_quadrant", "other", "which quadrant was erased", erased_quadrant),
    Task("low_digits", "subset", "digits 0 to 4", relabelled("01234.....")),
    Task("flipped", "transformed", "digits mirrored left to right", transformed(lambda images, _: images.flip(-1))),
    Task("prime", "relabelled", "prime or not", relabelled("0011010100")),
    Task("one_or_seven", "pairwise", "1 or 7", relabelled(".0.....1..")),
    Task("heavier_half", "other", "upper or lower half holds more ink", heavier_half),
    Task("high_digits", "subset", "digits 5 to 9", relabelled(".....01234")),
    Task("inverted", "transformed", "digits, light and dark exchanged", transformed(lambda images, _: 1 - images)),
    Task("modulo_three", "relabelled", "remainder of division by 3", relabelled("0120120120")),
    Task("four_or_nine", "pairwise", "4 or 9", relabelled("....0....1")),
    Task("quarter_turns", "other", "turned by 0, 90, 180 or 270°", quarter_turns),
    Task("noisy", "transformed", "digits under noise",
         transformed(lambda images, generator: images + 0.3 * torch.randn(images.shape, generator=generator))),
    Task("closed_loop", "relabelled", "with a closed loop (0, 6, 8, 9) or without", relabelled("1000001011")),
    Task("shuffled_pixels", "transformed", "digits, all pixels in one shuffled order",
         transformed(lambda images, generator: images.flatten(2)[..., torch.randperm(64, generator=generator)]
                     .view_as(images))),
    Task("random_pairs", "relabelled", "five classes of two digits drawn at random", relabelled("3140214203")),
    Task("quadrants", "transformed", "digits, opposite quadrants exchanged",
         transformed(lambda images, _: images.roll((4, 4), (-2, -1)))),
    Task("blurred", "transformed", "digits blurred over 3×3 pixels",
         transformed(lambda images, _: nn.functional.avg_pool2d(images, 3, stride=1, padding=1))),
)  # fmt: skip
DIGITS = Domain(load, BASE, TASKS)
