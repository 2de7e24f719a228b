"""The order of copies, kernels and results on a device, as its queues record it: what waits for what."""

import contextlib
import dataclasses
import threading

import pytest
import torch

import mergekern
from mergekern.kernels import dispatch
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.streams import HostStreams
from mergekern.kernels.transfer import Uploader
from tests.support.device import DEVICE, TRITON, backend

pytestmark = [*TRITON, pytest.mark.skipif(DEVICE.type == "cuda", reason="records the queues of the processor")]

LAYERS, MODELS, SIZE = 12, 3, 40
LAYER_BYTES = 4 * SIZE * (MODELS + 1)


class RecordingStreams(HostStreams):
    """Queues that note what is put into them, and when the host waits: (what, queue, number or name)."""

    def __init__(self):
        self.log, self._lock, self._events = [], threading.Lock(), 0

    def note(self, *entry):
        with self._lock:
            self.log.append(entry)

    @contextlib.contextmanager
    def on(self, queue, what):
        self.note("begin", queue, what)
        yield
        self.note("end", queue, what)

    def record(self, queue):
        with self._lock:
            self._events += 1
            self.log.append(("record", queue, self._events))
            return _Noted(self, queue, self._events)

    def wait(self, queue, event):
        self.note("wait", queue, event.number)

    def keep(self, tensors, queue):
        self.note("keep", queue, len(tensors))

    def fetch(self, tensor):
        self.note("fetch", "results", tuple(tensor.shape))
        return super().fetch(tensor)


class _Noted:
    def __init__(self, streams, queue, number):
        self.streams, self.queue, self.number = streams, queue, number

    def synchronize(self):
        self.streams.note("synchronize", self.queue, self.number)


@dataclasses.dataclass(frozen=True)
class Recorded(DeviceBackend):
    """The kernels of the processor, with queues that are looked at."""

    queues: RecordingStreams

    def streams(self):
        return self.queues


def recorded(monkeypatch, max_memory, metrics="task-vector geometry"):
    """Return the log of a measurement."""
    kernels, streams = backend(), RecordingStreams()
    fields = {field.name: getattr(kernels, field.name) for field in dataclasses.fields(kernels)}
    monkeypatch.setattr(dispatch, "choose", lambda device: Recorded(**fields, queues=streams))
    generator = torch.Generator().manual_seed(0)

    def state():
        return {f"w{layer:02d}": torch.randn(8, SIZE // 8, generator=generator) for layer in range(LAYERS)}

    mergekern.compute_all({f"m{i}": state() for i in range(MODELS)}, state(), metrics=metrics, max_memory=max_memory)
    return streams.log


def at(log, *entry):
    return next(place for place, each in enumerate(log) if each[: len(entry)] == entry)


def batch_of(layers_that_fit):
    """Return how many layers a batch has: a quarter of the budget, or the first that is not below that."""
    return -(-layers_that_fit // 4)


@pytest.mark.parametrize("layers_that_fit", [4, 6, LAYERS, 100 * LAYERS])
def test_what_waits_for_what(monkeypatch, layers_that_fit):
    log = recorded(monkeypatch, layers_that_fit * LAYER_BYTES)
    recordings = {number: (place, queue) for place, (what, queue, number) in enumerate(log) if what == "record"}
    ranges = [place for place, each in enumerate(log) if each[:2] == ("begin", "kernels")]
    assert len(ranges) == -(-LAYERS // min(LAYERS, batch_of(layers_that_fit)))
    sent = 0
    for place in ranges:
        # Kernels wait for the copies of all their tensors.
        waited = next(each for each in log[place:] if each[:2] == ("wait", "kernels"))
        recorded_at, queue = recordings[waited[2]]
        assert queue == "copies"
        keep = next(each for each in log[place:] if each[:2] == ("keep", "kernels"))
        sent += keep[2] // (MODELS + 1)
        assert recorded_at > at(log, "end", "copies", f"w{sent - 1:02d}")
        # Results are fetched behind these kernels, and behind no others.
        end = at(log, "end", "kernels", log[place][2])
        fetched = at(log, "begin", "results", log[place][2])
        number = [each for each in log[:fetched] if each[:2] == ("wait", "results")][-1]
        assert recordings[number[2]][1] == "kernels"
        assert end < recordings[number[2]][0] < fetched
    assert sent == LAYERS
    # The host waits for results alone: never for kernels or copies.
    assert {queue for what, queue, _ in log if what == "synchronize"} == {"results"}
    inside = 0
    for what, queue, _ in log:
        inside += (what == "begin" and queue == "results") - (what == "end" and queue == "results")
        assert what != "fetch" or inside == 1


@pytest.mark.parametrize("layers_that_fit", [4, 6, LAYERS])
def test_two_batches_are_in_flight_whatever_the_size_of_the_zoo(monkeypatch, layers_that_fit):
    log = recorded(monkeypatch, layers_that_fit * LAYER_BYTES)
    size = batch_of(layers_that_fit)
    for batch in range(LAYERS // size - 1):
        first_of_next = f"w{(batch + 1) * size:02d}"
        fetched = [place for place, each in enumerate(log) if each[:2] == ("record", "results")][batch]
        waited = at(log, "synchronize", "results", log[fetched][2])
        assert at(log, "end", "copies", first_of_next) < waited


def test_blocks_of_a_large_layer_leave_the_device_two_at_a_time(monkeypatch):
    log = recorded(monkeypatch, LAYER_BYTES // 2)
    assert ("synchronize", "kernels") in {each[:2] for each in log}
    in_flight = 0
    for what, queue, _ in log:
        in_flight += (what == "begin" and queue == "copies") - (what == "synchronize" and queue == "kernels")
        if what == "record" and queue == "results":
            in_flight = 0  # what is left of a layer
        assert in_flight <= 2


def test_too_little_memory_for_an_upload_says_what_to_do(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore")

    monkeypatch.setattr(Uploader, "upload", full)
    for max_memory in (None, LAYER_BYTES // 2):
        with pytest.raises(mergekern.OptionError, match=r"too little free memory .* 3\.00 GiB\. .* max_memory, or use"):
            recorded(monkeypatch, max_memory)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no room"), mergekern.OptionError),
        (RuntimeError("CUDA error: out of memory\nCompile with"), mergekern.OptionError),  # of pinned memory
        (RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError),
    ],
)
def test_which_errors_are_about_memory(error, expected):
    with pytest.raises(expected) as raised, backend().explaining_memory():
        raise error
    assert raised.type is expected
