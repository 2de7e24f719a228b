"""The kernels of a GPU as one backend, or the reason why they cannot run."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mergekern.errors import OptionError
from mergekern.kernels.combine import Rule
from mergekern.kernels.cuda_module import CudaModule, RawCudaModule
from mergekern.kernels.gram import Blocks, Gram
from mergekern.kernels.signs import DeviceSigns
from mergekern.kernels.spectrum import DeviceSpectra, Estimates, Stack
from mergekern.kernels.streams import CudaStreams, HostStreams, Streams
from mergekern.kernels.trim import ModelBlocks

# The Triton kernels need tensor cores for float64; this is the first compute capability that has them.
CAPABILITY = (8, 0)


@dataclass(frozen=True)
class DeviceBackend:
    """The kernels for batches of tensors on one device. Calls are queued on the current stream, and return at once.

    Attributes:
        name: versions of the libraries behind the kernels, as the provenance of every table records them.
        description: index and name of the device, recorded there too.
        device: device of all tensors.
        multiprocessors: number of multiprocessors of the device.
        module: the CUDA C++ kernels.
    """

    name: str
    description: str
    device: torch.device
    multiprocessors: int
    module: CudaModule

    def free_memory(self) -> int:
        """Return the free bytes of the device, including those that torch caches for reuse."""
        if self.device.type != "cuda":
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    def streams(self) -> Streams:
        """Return new queues of the device: for copies to it, kernels, and copies of results."""
        return CudaStreams(self.device) if self.device.type == "cuda" else HostStreams()

    @contextlib.contextmanager
    def explaining_memory(self) -> Iterator[None]:
        """Turn torch's error about device memory into an OptionError that says what to do."""
        try:
            yield
        except RuntimeError as error:  # of torch's allocator, or of CUDA where it pins memory of the host
            if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                raise
            raise OptionError(
                f"{self.description} has too little free memory for this zoo: {str(error).splitlines()[0]} "
                "Free memory there, give a smaller max_memory, or use device='cpu'."
            ) from error

    def inner_products(self, layers: Sequence[Sequence[torch.Tensor | None]]) -> torch.Tensor:
        """See mergekern.kernels.gram.on_triton."""
        from mergekern.kernels.gram import on_triton

        return on_triton.inner_products(layers)

    def gram(self, blocks: Blocks, threads: int = 1, split: int = 0) -> Gram:
        """Return the Gram of one tensor, which may be on the host; see mergekern.kernels.gram.on_triton."""
        from mergekern.kernels.gram import on_triton

        def there() -> Iterator[tuple[torch.Tensor | None, Sequence[torch.Tensor]]]:
            for base, tuned in blocks():
                yield None if base is None else base.to(self.device), [tensor.to(self.device) for tensor in tuned]
                del base, tuned

        return on_triton.gram(there, threads, split)

    def squared_distances(self, tuned: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """See mergekern.kernels.gram.on_triton."""
        from mergekern.kernels.gram import on_triton

        return on_triton.squared_distances(tuned, pairs)

    def spectra(self, stacks: Sequence[Stack], top_k: int, spectrum_k: int) -> list[DeviceSpectra]:
        """See mergekern.kernels.spectrum.on_cuda."""
        from mergekern.kernels.spectrum import on_cuda

        return on_cuda.spectra(stacks, top_k, spectrum_k, self.module)

    def spectrum_workspace(self, shape: tuple[int, int], top_k: int) -> int:
        """See mergekern.kernels.spectrum.on_cuda."""
        from mergekern.kernels.spectrum import on_cuda

        return on_cuda.workspace(shape, top_k)

    def randomized_spectra(
        self, stacks: Sequence[Stack], names: Sequence[str], top_k: int, spectrum_k: int, tolerance: float
    ) -> list[tuple[DeviceSpectra, Estimates]]:
        """See mergekern.kernels.randomized_spectrum.on_cuda."""
        from mergekern.kernels.randomized_spectrum import on_cuda

        return on_cuda.spectra(stacks, names, top_k, spectrum_k, tolerance, self.module)

    def randomized_spectrum_workspace(self, shape: tuple[int, int], top_k: int, spectrum_k: int) -> int:
        """See mergekern.kernels.randomized_spectrum.on_cuda."""
        from mergekern.kernels.randomized_spectrum import on_cuda

        return on_cuda.workspace(shape, top_k, spectrum_k)

    def overlap(self, bases: torch.Tensor) -> torch.Tensor:
        """See mergekern.kernels.overlap.on_triton."""
        from mergekern.kernels.overlap import on_triton

        return on_triton.overlap(bases)

    def interference(self, values: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """See mergekern.kernels.interference.on_torch."""
        from mergekern.kernels.interference import on_torch

        return on_torch.interference(values, left, right)

    def kth_largest(self, blocks: ModelBlocks, models: int, count: int, k: int) -> torch.Tensor:
        """See mergekern.kernels.trim.on_cuda."""
        from mergekern.kernels.trim import on_cuda

        return on_cuda.kth_largest(blocks, models, count, k, self.module, self.device)

    def signs(self, layers: Sequence[Sequence[torch.Tensor | None]], thresholds: torch.Tensor) -> DeviceSigns:
        """See mergekern.kernels.signs.on_triton."""
        from mergekern.kernels.signs import on_triton

        return on_triton.signs(layers, thresholds)

    def combine(
        self, base: torch.Tensor | None, tuned: Sequence[torch.Tensor], rule: Rule, out: torch.Tensor, start: int = 0
    ) -> torch.Tensor:
        """See mergekern.kernels.combine.on_triton."""
        from mergekern.kernels.combine import on_triton

        return on_triton.combine(base, tuned, rule, out, start)


def cuda_backend(device: torch.device) -> DeviceBackend:
    """Return the backend of a CUDA device. Its kernels are compiled, or loaded from CuPy's cache.

    Raises:
        OptionError: the kernels cannot run on the device; the message gives the reason and the remedy.
    """
    if torch.version.cuda is None:
        raise _unusable(device, f"torch {torch.__version__} is built without CUDA; install a build with it")
    if not torch.cuda.is_available():
        raise _unusable(device, f"torch sees no CUDA device: {_why_no_cuda()}")
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        there = ", ".join(f"'cuda:{i}' ({torch.cuda.get_device_name(i)})" for i in range(count))
        raise _unusable(device, f"there are {count} CUDA devices here: {there}")
    try:
        return _made(index)
    except OptionError as error:
        raise _unusable(device, str(error)) from error


@functools.cache
def _made(index: int) -> DeviceBackend:
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    if capability < CAPABILITY:
        raise OptionError(
            f"{properties.name} has compute capability {properties.major}.{properties.minor}; "
            f"the kernels need {CAPABILITY[0]}.{CAPABILITY[1]}"
        )
    try:
        import triton
    except ImportError as error:
        raise OptionError(f"Triton cannot be imported ({error}); `pip install triton`") from error
    return DeviceBackend(
        f"triton {triton.__version__}, cuda {torch.version.cuda} (sm_{capability[0]}{capability[1]})",
        f"cuda:{index} ({properties.name})",
        torch.device("cuda", index),
        properties.multi_processor_count,
        RawCudaModule(torch.device("cuda", index)),
    )


def _why_no_cuda() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "its driver reports none"


def _unusable(device: torch.device, why: str) -> OptionError:
    return OptionError(f"device {str(device)!r} cannot be used: {why}; or use device='cpu' or 'auto'")
