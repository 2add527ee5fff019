"""A GPU without code for it is refused in one line."""

import pytest
import torch

from pipeline.core.errors import ClusterError
from pipeline.models.device.architecture import check_architecture, missing_code

NEW = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
OLD = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.mark.parametrize(
    ("capability", "architectures", "cudnn", "reason"),
    [
        ((9, 0), NEW, 92300, ""),
        ((8, 9), NEW, 92300, ""),  # L4: code of sm_86
        ((7, 5), NEW, 92300, ""),
        ((7, 0), NEW, 92300, "torch was built for sm_75"),
        ((7, 0), OLD, 91100, "cuDNN 9.11 has no code"),
        ((7, 0), OLD, 91002, ""),
        ((6, 1), OLD, 90000, ""),
        ((12, 1), NEW, 92300, ""),
        ((13, 0), NEW, 92300, ""),  # PTX, compiled by the driver
        ((10, 0), OLD, 92300, "torch was built for sm_50"),
        ((9, 0), [], 0, ""),  # unknown
    ],
)
def test_code_for_a_gpu(capability: tuple[int, int], architectures: list[str], cudnn: int, reason: str) -> None:
    found = missing_code(capability, architectures, cudnn)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_a_v100_is_refused_in_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: NEW)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    with pytest.raises(ClusterError, match=r"^Tesla V100 \(sm_70\): torch was built for sm_75 .*; install .*cpu$"):
        check_architecture(torch.device("cuda", 0))
    check_architecture(torch.device("cpu"))
