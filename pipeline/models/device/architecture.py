"""GPUs that the installed torch has no code for: refused in one line, before the first operation fails on one."""

import re

import torch

from pipeline.core.errors import ClusterError

_CUDNN_WITHOUT_VOLTA = 91100
"""cuDNN 9.11 dropped GPUs before Turing (sm_75): V100, P100 and older (release notes of cuDNN 9.11)."""
_TURING = (7, 5)
_ARCHITECTURE = re.compile(r"\b(sm|compute)_(\d+)")


def check_architecture(device: torch.device) -> None:
    """Raises ClusterError if this torch, or its cuDNN, has no code for the GPU `device`. A CPU passes."""
    if device.type != "cuda":
        return
    versions = f"torch {torch.__version__}"
    cudnn: int = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
    capability = torch.cuda.get_device_capability(device)
    if reason := missing_code(capability, torch.cuda.get_arch_list(), cudnn):
        raise ClusterError(
            f"{torch.cuda.get_device_name(device)} (sm_{capability[0]}{capability[1]}): {reason} ({versions}); install "
            "an older torch, whose build has code for this GPU, or use --device cpu"
        )


def missing_code(capability: tuple[int, int], architectures: list[str], cudnn: int) -> str:
    """Returns why a GPU can't be used, or "".

    capability: of the GPU, (major, minor). architectures: that torch was built for ("sm_75", "compute_120"). cudnn:
    version, 91100 for 9.11.0; 0 if there is none.
    """
    known = [(kind, divmod(int(number), 10)) for kind, number in _ARCHITECTURE.findall(" ".join(architectures))]
    # Machine code runs on later GPUs of the same generation; PTX is compiled for all later ones.
    runs = any(built <= capability and (kind == "compute" or built[0] == capability[0]) for kind, built in known)
    if known and not runs:
        return f"torch was built for {' '.join(architectures)}"
    if cudnn >= _CUDNN_WITHOUT_VOLTA and capability < _TURING:
        return f"cuDNN {cudnn // 10000}.{cudnn // 100 % 100} has no code for it"
    return ""
