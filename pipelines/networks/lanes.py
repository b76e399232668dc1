"""To the device and back beside its computing: a stream each for copies in, arithmetic and copies out.

On the CPU a lane does the step itself and nothing else.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IN_FLIGHT = 2
"""Pinned results that may be under way at a time."""


@dataclass(frozen=True, slots=True)
class _Landing:
    """A result on its way into pinned memory, and where it is put from there."""

    arrived: Any
    pinned: Tensor
    target: NDArray[np.float32]


class Lanes:
    """What one thread sends to a device and fetches from it. The order of its steps changes no byte.

    Copies in wait for nothing, arithmetic for its copy in, a copy out for its arithmetic; `put` of the next block and
    `fetch` of the one before run while a block is computed.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._streams: list[Any] = []
        if self._device.type == "cuda":
            self._streams += [torch.cuda.Stream(self._device) for _ in range(3)]  # type: ignore[no-untyped-call]
        self._landings: deque[_Landing] = deque()

    def put(self, array: NDArray[Any]) -> Tensor:
        """The array on the device, for arithmetic inside `computing`."""
        samples = torch.from_numpy(np.ascontiguousarray(array))
        if not self._streams:
            return samples
        copying, computing, _ = self._streams
        with torch.cuda.stream(copying):
            moved = samples.pin_memory().to(self._device, non_blocking=True)
        computing.wait_stream(copying)
        moved.record_stream(computing)  # its memory is not reused before
        return moved

    def computing(self) -> AbstractContextManager[Any]:
        """Where arithmetic is to be asked for."""
        return torch.cuda.stream(self._streams[1]) if self._streams else nullcontext()

    def fetch(self, values: Tensor, target: NDArray[np.float32]) -> None:
        """Put values that were computed into a part of an array: by `finish` at the latest."""
        if not self._streams:
            target[...] = values.numpy()
            return
        _, computing, copying = self._streams
        copying.wait_stream(computing)
        with torch.cuda.stream(copying):
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            pinned.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            arrived.record(copying)
        values.record_stream(copying)
        self._landings.append(_Landing(arrived, pinned, target))
        while len(self._landings) > IN_FLIGHT:
            self._land()

    def finish(self) -> None:
        """Wait for what is under way."""
        while self._landings:
            self._land()

    def _land(self) -> None:
        landing = self._landings.popleft()
        landing.arrived.synchronize()
        landing.target[...] = landing.pinned.numpy()
