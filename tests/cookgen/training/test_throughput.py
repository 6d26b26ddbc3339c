from __future__ import annotations

import pytest
import torch

from cookgen.training import throughput
from cookgen.training.throughput import Meter, peak_flops, peak_memory_bytes


def test_rates() -> None:
    meter = Meter(peak_flops=1e12)
    meter.add(seconds=1.0, wait_s=0.25, tokens=100, flops=2e11)
    meter.add(seconds=3.0, wait_s=0.25, tokens=300, flops=2e11)
    assert meter.read() == {"step_s": 2.0, "tokens_per_s": 100.0, "data_wait": 0.125, "mfu": pytest.approx(0.1)}
    meter.add(seconds=2.0, wait_s=0.0, tokens=10, flops=0)
    assert meter.read()["tokens_per_s"] == 5.0  # begun anew


def test_no_peak_no_mfu() -> None:
    meter = Meter(peak_flops(torch.device("cpu")))
    meter.add(seconds=1.0, wait_s=0.0, tokens=1, flops=1.0)
    assert "mfu" not in meter.read()
    assert peak_flops(torch.device("cpu"), 2.5) == 2.5e12


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),  # another, slower chip
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),  # a seventh of one
        ("Tesla T4", None),  # has no bf16
    ],
)
def test_the_driver_s_names(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(throughput.torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), precision="bf16") == peak


def test_the_table_is_of_bf16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput.torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_flops(torch.device("cuda"), precision="fp32") is None
    assert peak_flops(torch.device("cuda"), 67, precision="fp32") == 67e12


def test_memory_grows_with_what_is_held() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(2**26)  # 256 MiB
    assert peak_memory_bytes(torch.device("cpu")) >= before
    assert peak_memory_bytes(torch.device("cpu")) > held.nbytes
