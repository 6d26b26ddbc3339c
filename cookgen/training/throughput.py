"""How fast a training is, against what the device could do."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from cookgen.training.config import Precision

# Dense bf16 operations a second as the makers state them, by a part of the name that the driver gives; first match.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
_LESS = (" MIG ", " Laptop ")  # in the name of a part of such a device, or of a slower one


def peak_flops(
    device: torch.device, peak_tflops: float | None = None, *, precision: Precision = "bf16"
) -> float | None:
    """Operations a second that the device can do at most; None where neither the user nor the table says it.

    peak_tflops: what the user states. The table knows bf16 alone.
    """
    if peak_tflops is not None:
        return peak_tflops * 1e12
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    if any(part in name for part in _LESS):
        return None
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory taken so far: on a GPU what torch allocated there, else what was resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # Linux, whose ru_maxrss also counts the process that started this one
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass
class Meter:
    """Adds up the updates since it was last read; tokens and flops are of all ranks together.

    MFU (model FLOPs utilisation) = flops / (seconds * peak of all devices). Source: PaLM, appendix B.
    """

    peak_flops: float | None  # of all ranks' devices together
    updates: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0  # of `seconds`, how long the data were waited for
    tokens: int = 0
    flops: float = 0.0

    def add(self, *, seconds: float, wait_s: float, tokens: int, flops: float) -> None:
        """Counts one update."""
        self.updates += 1
        self.seconds += seconds
        self.wait_s += wait_s
        self.tokens += tokens
        self.flops += flops

    def read(self) -> dict[str, float]:
        """step_s, tokens_per_s, data_wait (a share of the time) and, where the peak is known, mfu; begins anew."""
        assert self.updates and self.seconds > 0
        rates = {
            "step_s": self.seconds / self.updates,
            "tokens_per_s": self.tokens / self.seconds,
            "data_wait": self.wait_s / self.seconds,
        }
        if self.peak_flops is not None:
            rates["mfu"] = self.flops / (self.seconds * self.peak_flops)
        self.updates = self.tokens = 0
        self.seconds = self.wait_s = self.flops = 0.0
        return rates
