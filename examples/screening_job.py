"""Screen zoos inside a service of your own.

Jobs are cancelled and resumed, several run at a time, progress and messages go where the service wants them, and
nothing is printed on standard output.
"""

# %% A job: measure a zoo, and rank its pairs.
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

import mergekern
from mergekern.prediction.screening import screen

log = logging.getLogger("service")


class Cancelled(Exception):
    """Somebody cancelled the job."""


@dataclass
class Job:
    """One zoo to screen. Its folder keeps what was measured, so that a cancelled job continues."""

    zoo: Path
    folder: Path
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: float = 0.0

    def report(self, progress: mergekern.Progress) -> None:
        """Note how far the job is. An error that progress raises ends the run; what was measured is kept."""
        self.done = progress.bytes_done / progress.bytes_total
        if self.cancelled.is_set():
            raise Cancelled

    def run(self) -> Path:
        """Return the Parquet file with all pairs."""
        statistics, out = self.folder / "statistics", self.folder / "pairs.parquet"
        mergekern.measure_into(statistics, self.zoo, progress=self.report)
        found = screen(statistics, out=out)
        log.info("%s: %d pairs, best %s and %s", self.zoo.name, found.pairs, *found.ranked.index[0][:2])
        return out


# %% Messages: mergekern logs under "mergekern", and what took no part under "mergekern.notes". Nothing is printed.
class Collected(logging.Handler):
    """Keeps messages; a service would send them on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message, with the thread that it comes from."""
        self.lines.append(f"{record.threadName} {record.name}: {record.getMessage()}")


collected = Collected()
for name in ("service", "mergekern"):
    logging.getLogger(name).addHandler(collected)
    logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger(name).propagate = False

# %% Three zoos to try it on. Replace this cell by your own folders.
work = TemporaryDirectory()
root = Path(work.name)
generator = torch.Generator().manual_seed(0)
jobs = []
for number in range(3):
    zoo = root / f"zoo_{number}"
    zoo.mkdir()
    base = {f"layers.{layer}.weight": torch.randn(24, 16, generator=generator) for layer in range(4)}
    save_file(base, zoo / "base.safetensors")
    for model in range(4):
        tuned = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        save_file(tuned, zoo / f"model_{model}.safetensors")
    jobs.append(Job(zoo, root / f"job_{number}"))


# %% All at a time, a thread each. One is cancelled when half of it is done.
class Impatient(Job):
    """A job that cancels itself, as somebody else would."""

    def report(self, progress: mergekern.Progress) -> None:
        """Cancel in the middle."""
        if progress.tensors_done == 2:
            self.cancelled.set()
        super().report(progress)


jobs[1] = Impatient(jobs[1].zoo, jobs[1].folder)
with ThreadPoolExecutor(len(jobs), thread_name_prefix="job") as pool:
    futures = [pool.submit(job.run) for job in jobs]
assert isinstance(futures[1].exception(), Cancelled)
assert not (jobs[1].folder / "pairs.parquet").exists()

# %% The cancelled job continues where it was, perhaps in another process, and ends as if nothing had happened.
jobs[1] = Job(jobs[1].zoo, jobs[1].folder)
jobs[1].run()
for job in jobs:
    assert job.done == 1
    found = mergekern.MetricTable.load(job.folder / "pairs.parquet").to_pandas()
    expected = mergekern.compute_all(job.zoo).to_pandas()
    assert found.loc[expected.index, expected.columns].equals(expected)

# %% Bad input is one error, with a class that says of which kind it is, and a sentence that names the culprit.
(jobs[0].zoo / "model_0.safetensors").write_bytes(b"not a checkpoint")
try:
    jobs[0].run()
except mergekern.CheckpointError as error:
    log.warning("%s failed: %s", jobs[0].zoo.name, error)

# %%
work.cleanup()
