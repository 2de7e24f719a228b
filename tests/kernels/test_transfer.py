from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mergekern.kernels import transfer
from mergekern.kernels.transfer import Uploader, fetched, with_index
from tests.support.device import DEVICE, needs_gpu

SIZES = [1, 255, 256, 257, 1000, 3000]


@pytest.mark.parametrize("length", [64, 512, 4096, 1 << 20])
def test_every_byte_passes_through_the_buffers(length, monkeypatch):
    monkeypatch.setattr(transfer, "PIECE", 100)
    sources = [torch.arange(size).to(torch.uint8) + index for index, size in enumerate(SIZES)]
    starts = list(transfer._starts(sources))
    assert all(start % transfer.ALIGNMENT == 0 for start in starts)
    placed = dict(zip(starts, sources, strict=False))
    room = torch.zeros(starts[-1], dtype=torch.uint8)
    for begin in range(0, len(room), length):
        buffer = torch.full((length,), 255, dtype=torch.uint8)
        for offset, piece, source in transfer._pieces(placed, begin, buffer):
            assert piece.data_ptr() == buffer[offset:].data_ptr()
            assert 0 < len(piece) == len(source) <= 100
            room[begin + offset :][: len(piece)] = source
    for start, source in placed.items():
        assert torch.equal(room[start:][: len(source)], source)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("pinned", [False, True])
def test_uploaded_tensors_hold_the_same(pinned, monkeypatch):
    monkeypatch.setattr(transfer, "BUFFER", 4096)
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        tensors = [torch.randn(size, 3, generator=generator).to(dtype) for size in (0, 1, 85, 2000)]
        sent = [tensor.pin_memory() if pinned else tensor for tensor in tensors] + [torch.ones(3, device=DEVICE)]
        uploader = Uploader(torch.device("cuda"))  # without an index: what is there already stays there
        with ThreadPoolExecutor(2) as pool:
            found = uploader.upload(sent, pool)
        uploader.stream.synchronize()
        assert found[-1] is sent[-1]
        for there, tensor in zip(found, tensors, strict=False):
            assert there.device == DEVICE
            assert there.dtype == tensor.dtype
            assert torch.equal(there.cpu().view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.gpu
def test_fetched_tensors_hold_the_same():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        values = torch.arange(3000).to(dtype)
        for some in (values, values[1:], values[:0]):
            found = fetched(some.to(DEVICE))
            assert found.device.type == "cpu"
            assert torch.equal(found, some)


def test_a_device_has_the_index_that_its_tensors_have(monkeypatch):
    assert with_index(torch.device("cpu")) == torch.device("cpu")
    assert with_index(torch.device("cuda", 2)) == torch.device("cuda", 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert with_index(torch.device("cuda")) == torch.device("cuda", 1)
