"""Shares of the work on one zoo, for schedulers of clusters; what they measured is put together afterwards.

Each shard has a statistics folder of its own, and the same list of work items, of which it does those that fall to it.
No value of a pair depends on where it was computed, so that the whole is, to the last bit, what one process gives.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mergekern._internal.validation import positive_integer
from mergekern.api import choose_measurement, content_hashes, manifest_of, provenance_of_run
from mergekern.checkpoints import LayerStream, open_zoo
from mergekern.checkpoints.sources import CheckpointLike, ZooLike
from mergekern.errors import CheckpointError, OptionError, StatisticsError
from mergekern.measurement.destinations import ShareInStore, with_interference, with_overlaps
from mergekern.measurement.layer_pass import LayerPass
from mergekern.measurement.options import MeasureOptions
from mergekern.measurement.tiles import BLOCK_SIZE, cost, share, tiles
from mergekern.progress import Progress
from mergekern.statistics.assembly import Coverage
from mergekern.statistics.keys import BlockKey, bases_path, block_path
from mergekern.statistics.layer_block import LayerBlock, read_bases
from mergekern.statistics.manifest import MANIFEST, REMOVED, LayerEntry, Manifest, shards_in
from mergekern.statistics.store import Store, check_folder, shard_folder, writing

# What may differ between the shards of one zoo.
_OF_A_SHARD = ("content_hashes", "redone_on_cpu")


def measure_shard(
    checkpoints: ZooLike,
    base: CheckpointLike | None = None,
    *,
    shard: tuple[int, int],
    statistics: str | os.PathLike[str],
    options: MeasureOptions | None = None,
    block_size: int = BLOCK_SIZE,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Measure one of n shares of a zoo, of about the same cost, and return the folder that has it.

    What the folder has already is not measured again, so that a shard that was killed continues; nor what `statistics`
    has, where shards of the same zoo were combined before.

    Args:
        shard: (i, n), i from 1 to n. All shards need the same checkpoints, options and n.
        statistics: a folder; the shard writes to shard-i-of-n in it, and `combine` puts the shards together there.
        block_size: models that are measured together; of a zoo of B blocks every tensor is read B times, by B(B+1)/2
            items of work that may be done in different places.
        checkpoints, base, progress: as for `compute_all`.
        options: what is measured, and how, as for `measure`; metrics that run models are computed afterwards, by
            `compute_all` on the combined folder.

    Raises:
        OptionError: no such shard, a metric that runs models, and as for `compute_all`.
        CheckpointError, MismatchError, NonFiniteError, StatisticsError, OutputError: as for `compute_all`.
    """
    index, count = shard
    if not 1 <= index <= count:
        raise OptionError(f"shard {index}/{count}: shards are numbered from 1 to their number")
    block_size = positive_integer("block_size", block_size)
    options = options or MeasureOptions()
    run = [metric.name for metric in options.chosen if metric.runs_models]
    if run and not options.asks_for_all:
        raise OptionError(
            f"{', '.join(run)}: shards measure weights; ask for these when computing the table of the combined folder"
        )
    measurement = choose_measurement(options, with_bases=True)
    zoo = open_zoo(
        checkpoints, base, on_mismatch=options.on_mismatch, io=options.io, needs_base=False, rename=options.rename
    )
    every = tiles([], range(len(zoo.models)), block_size)
    costs = [[cost(tensor.shape, tile, options.with_spectrum) for tile in every] for tensor in zoo.tensors]
    check_folder(Path(statistics))
    folder = shard_folder(Path(statistics), index, count)
    with writing(folder, lender=Path(statistics)) as store:
        stream = LayerStream(zoo, measurement.max_memory)
        items = share(costs, index - 1, count)
        destination = ShareInStore(items, store, stream, measurement, block_size)
        layers = LayerPass(stream, measurement, destination, progress)
        layers.run()
        layers.report("")
        store.finish(manifest_of(layers, provenance_of_run(layers, None, is_whole=False), {}, shard))
    return folder


def combine(statistics: str | os.PathLike[str], shards: Sequence[str | os.PathLike[str]] | None = None) -> Path:
    """Put the shards of a zoo together in a folder of statistics, checking every block, and return it.

    Args:
        statistics: the folder.
        shards: the folders that `measure_shard` returned, in any order; by default those in `statistics`, which are
            removed when everything is together.

    Raises:
        StatisticsError: a shard is missing, unfinished, damaged, or of another zoo or other options.
        CheckpointError: a checkpoint was replaced between the shards.
        OutputError: the folder cannot be written to, or another process is using it.
    """
    folder = Path(statistics)
    paths = shards_in(folder) if shards is None else [Path(shard) for shard in shards]
    if shards is None and _are_combined(folder, paths):
        with writing(folder):
            _remove(folder, paths)
        return folder
    manifests = [_read_manifest(path) for path in paths]
    _check_complete(folder, paths, manifests)
    first = manifests[0]
    with writing(folder) as store:
        factorised: dict[bool, Path] = {}
        entries = [_combine_layer(store, paths, manifests, index, factorised) for index in range(len(first.layers))]
        said: dict[str, Any] = {**(first.provenance or {})}
        if "redone_on_cpu" in said:
            said["redone_on_cpu"] = sum((m.provenance or {})["redone_on_cpu"] for m in manifests)
        said["content_hashes"] = content_hashes(first.models, entries)
        store.finish(
            Manifest(
                first.models, tuple(entries), first.top_k, first.spectrum_k, first.skipped, said, first.sources, {}, ()
            )
        )
        if shards is None:
            _remove(folder, paths)
    return folder


def _are_combined(folder: Path, paths: Sequence[Path]) -> bool:
    """Tell whether all is put together, and only the removal of the shards was stopped."""
    if not any(folder.glob(f".{REMOVED}-*")):
        return False
    try:
        kept = Manifest.read(folder).file_names
        return all(Manifest.read(path).file_names <= kept for path in paths)
    except StatisticsError:
        return False


def _remove(folder: Path, paths: Sequence[Path]) -> None:
    """Remove shards that are put together; what a killed removal leaves tells a later call that they are."""
    (folder / f".{REMOVED}-0").mkdir(exist_ok=True)
    for number, path in enumerate(paths, 1):
        shutil.rmtree(folder / f".{REMOVED}-{number}", ignore_errors=True)
        path.rename(folder / f".{REMOVED}-{number}")
    # The mark goes last.
    for path in sorted(folder.glob(f".{REMOVED}-*"), key=lambda path: path.name.endswith("-0")):
        shutil.rmtree(path)


def _read_manifest(shard: Path) -> Manifest:
    try:
        return Manifest.read(shard)
    except StatisticsError as error:
        raise StatisticsError(
            f"{shard}: not a finished shard, or damaged; run it again, which continues from what is there"
        ) from error


def _check_complete(folder: Path, paths: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Raise StatisticsError unless these are all the shards of one zoo."""
    if not manifests:
        raise StatisticsError(
            f"{folder}: no shards in it; `mergekern metrics ZOO --statistics {folder} --shard 1/4` makes one of four"
        )
    first = manifests[0]
    for path, manifest in zip(paths, manifests, strict=True):
        for what in ("models", "top_k", "spectrum_k", "skipped"):
            if getattr(manifest, what) != getattr(first, what):
                raise StatisticsError(
                    f"{path}: measured with other {what.replace('_', ' ')} than {paths[0]}; run all shards alike"
                )
        if [(e.name, e.shape) for e in manifest.layers] != [(e.name, e.shape) for e in first.layers]:
            raise StatisticsError(f"{path}: of other tensors than {paths[0]}; run all shards on the same checkpoints")
        here, there = (
            {k: v for k, v in (m.provenance or {}).items() if k not in _OF_A_SHARD} for m in (manifest, first)
        )
        if different := [what for what in {**here, **there} if here.get(what) != there.get(what)]:
            what = different[0]
            raise StatisticsError(
                f"{path}: its {what} differ from those of {paths[0]} ({here.get(what)}, {there.get(what)}), so that "
                "the last bits could; run all shards alike (MERGEKERN_INSTRUCTION_SET makes processors equal)"
            )
        if manifest.part[1] != first.part[1]:
            raise StatisticsError(
                f"{path}: one of {manifest.part[1]} shards, but {paths[0]} is one of {first.part[1]}; delete those of "
                "the other number"
            )
    numbers = [manifest.part[0] for manifest in manifests]
    count = first.part[1]
    if missing := sorted(set(range(1, count + 1)) - set(numbers)):
        raise StatisticsError(
            f"{folder}: of {count} shards these are missing: {', '.join(map(str, missing))}; run them{_or_load(folder)}"
        )
    if len(set(numbers)) < len(numbers):
        raise StatisticsError(
            f"{folder}: a shard is given twice; give each of {', '.join(map(str, sorted(numbers)))} once"
        )


def _or_load(folder: Path) -> str:
    """Return what else may be done where shards are missing: they were removed, but not all, when all were together."""
    is_finished = (folder / MANIFEST).exists()
    return f", or delete the others, if {folder} has been combined and need only be loaded" if is_finished else ""


def _combine_layer(
    store: Store, paths: Sequence[Path], manifests: Sequence[Manifest], index: int, factorised: dict[bool, Path]
) -> LayerEntry:
    """Put together one tensor; `factorised` has a shard that did factorise matrices, and one that did not."""
    entries = [manifest.layers[index] for manifest in manifests]
    name, shape = entries[0].name, entries[0].shape
    hashes = _agreed_hashes(name, paths, manifests, entries)
    blocks: dict[BlockKey, tuple[bool, bool]] = {}  # whether they have overlaps, and interference
    for path, manifest, entry in zip(paths, manifests, entries, strict=True):
        for key in entry.blocks:
            block = _brought(store, path, key, manifest.part)
            blocks[block.key] = block.has_spectra, block.has(["interference"])
            if block.key.is_diagonal and len(shape) == 2:
                factorised.setdefault(block.has_spectra, path)
    if len(factorised) == 2:
        raise StatisticsError(
            f"{factorised[False]}: measured for metrics that need no singular values, which {factorised[True]} has; "
            "run all shards with the same metrics"
        )
    for join, kind in ((with_overlaps, 0), (with_interference, 1)):
        if any(has[kind] for has in blocks.values()):
            for of in (key for key, has in blocks.items() if not has[kind]):
                store.put(join(LayerBlock.read(store.path, of.file_name), list(blocks), store))
    coverage = Coverage(hashes[1:])
    for of in blocks:
        coverage.add(of)
    if not coverage.is_complete:
        raise StatisticsError(
            f"{store.path}: tensor {name!r}: the shards do not have all pairs of models; run all shards "
            "with the same metrics and block size"
        )
    return LayerEntry(name, shape, hashes, tuple(of.file_name for of in blocks))


def _agreed_hashes(
    name: str, paths: Sequence[Path], manifests: Sequence[Manifest], entries: Sequence[LayerEntry]
) -> tuple[str, ...]:
    found: dict[int, tuple[str, Path]] = {}
    for path, entry in zip(paths, entries, strict=True):
        for model, digest in enumerate(entry.hashes):
            known, where = found.setdefault(model, (digest, path)) if digest else (digest, path)
            if digest != known:
                whose = ("base", *manifests[0].models)[model]
                raise CheckpointError(
                    f"{whose}: tensor {name!r} was another one in {path} than in {where}: the checkpoint was replaced "
                    "between the shards; run them again on the same files"
                )
    if missing := [model for model in range(len(entries[0].hashes)) if model not in found]:
        whose = ("base", *manifests[0].models)[missing[0]]
        raise StatisticsError(
            f"{paths[0].parent}: tensor {name!r}: no shard has measured {whose!r}; run all shards alike, with the same "
            "metrics and block_size"
        )
    return tuple(found[model][0] for model in range(len(entries[0].hashes)))


def _brought(store: Store, source: Path, key: str, part: tuple[int, int]) -> LayerBlock:
    """Return a block of a shard, of which the folder now has a copy."""
    try:
        block = LayerBlock.read(source, key)
        if bases_path(source, key).exists():
            read_bases(source, key, block.key)
    except StatisticsError as error:
        raise StatisticsError(
            f"{error}; run shard {part[0]}/{part[1]} again, which computes what is lacking"
        ) from error
    for path_in in (bases_path, block_path):
        if path_in(source, key).exists():
            store.bring(path_in(source, key), path_in(store.path, key))
    return block
