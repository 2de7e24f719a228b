"""One table, to the last bit, whether a run goes to its end or is killed and resumed."""

import signal
import time

import mergekern
from mergekern import ZooStatistics
from mergekern.statistics.manifest import Manifest
from tests.support.faults import context
from tests.support.zoos import assert_same, write_zoo


def test_a_folder_of_one_run(zoo, expected, tmp_path):
    assert_same(mergekern.measure(zoo, statistics=tmp_path / "s"), expected)
    assert_same(ZooStatistics.load(tmp_path / "s"), expected)


def measure(zoo, folder, begun):
    """Measure a zoo, in a process that the test may kill."""
    begun.set()
    mergekern.measure(zoo, statistics=folder)


def test_killed_at_twenty_moments_and_resumed(tmp_path):
    """Runs on a folder are killed until one finishes; then the next folder begins. No kill changes a result."""
    zoo = write_zoo(tmp_path / "zoo", [f"m{index:02d}" for index in range(30)], blocks=6)
    expected = mergekern.compute_all(zoo, per_layer=True)

    def start(folder):
        begun = context.Event()
        process = context.Process(target=measure, args=(zoo, folder, begun))
        process.start()
        assert begun.wait(60)
        return process

    start(tmp_path / "first").join()
    began = time.perf_counter()
    start(tmp_path / "timed").join()
    seconds = time.perf_counter() - began
    killed = folders = 0
    for attempt in range(200):
        process = start(tmp_path / f"s{folders}")
        time.sleep(seconds * (attempt * 0.618 % 1))  # an irrational step spreads the kills over all stages
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        folders += process.exitcode == 0
        if killed == 20:
            break
    assert killed == 20
    for folder in tmp_path.glob("s?"):
        assert_same(mergekern.measure(zoo, statistics=folder), expected)
        assert not mergekern.verify(folder)
        # The killed runs leave no files behind.
        keys = Manifest.read(folder).file_names
        left = {path for path in folder.rglob("*") if path.is_file()} - {folder / "manifest.json", folder / ".lock"}
        assert {path.stem for path in left} == keys
        assert {path.suffix for path in left} == {".safetensors"}
