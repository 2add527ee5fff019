"""Measures training on this machine's GPU, checks it, and compares it with plain PyTorch: a proof in eight minutes.

Seven sections run one after the other, each in a process and a time of its own: ceilings of the device, correctness,
ResNet-50, CIFAR-10 in seconds, the decoder, checkpoints, and a stream by Ray with kills. Only the last needs Ray. The
results are written while they come, so a cut loses nothing, and neither does a section that fails. Without archives the
images are generated, and the results say so.

`--sections records` trains CIFAR-10's recipes instead, seed by seed.

Exit status: 1 if a section failed, a check of correctness among them. A target that is missed is reported, no failure.

Examples:
    uv run jobs/bench_gpu.py --data cifar-10-binary.tar.gz photos.tar
    uv run jobs/bench_gpu.py --device cpu --small
"""

import tempfile
from dataclasses import dataclass
from typing import Annotated, Literal

from jobs.terminal import command
from pipeline.core.errors import PipelineError


@dataclass(frozen=True)
class Args:
    """Flags."""

    data: Annotated[
        tuple[str, ...], command.option("archives: CIFAR-10 (binary), a tar of JPEGs", "TAR...", "none")
    ] = ()
    device: Annotated[Literal["auto", "cuda", "cpu"], command.option("device", "NAME", "auto: the GPU if any")] = "auto"
    small: Annotated[bool, command.option("tiny sizes: everything runs, no figure means anything", "")] = False
    sections: Annotated[tuple[str, ...], command.option("sections to run", "NAME...", "all")] = ()
    seconds: Annotated[float, command.option("time for all sections", "N", "450")] = 450.0
    out: Annotated[str, command.option("file for the results, as JSON", "FILE", "bench-gpu.json")] = "bench-gpu.json"


def main(args: Args) -> None:
    """Runs the sections and prints the table of targets."""
    import torch

    from jobs.bench.gpu import pictures
    from jobs.bench.gpu.child import MODULES, Settings
    from jobs.bench.gpu.sections import Proof, chosen
    from jobs.bench.gpu.targets import shown
    from pipeline.models.device.architecture import check_architecture

    if unknown := set(args.sections) - set(MODULES):
        raise PipelineError(f"--sections {', '.join(sorted(unknown))}: no such section; there are {', '.join(MODULES)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("--device cuda: torch sees no GPU here; use --device cpu --small for a try")
    if args.seconds <= 0:
        raise PipelineError(f"--seconds {args.seconds:g} must be above 0")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    check_architecture(torch.device(device))
    cifar, photos = pictures.recognise(args.data)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-", ignore_cleanup_errors=True) as folder:
        settings = Settings(device, args.small, cifar, photos, folder)
        proof, names = Proof(args.out, settings, args.seconds), chosen(args.sections)
        for number, name in enumerate(names):
            proof.run(name, names[number + 1 :])
    command.print_table("Targets", [(line["what"], shown(line)) for line in proof.values["table"]])
    command.console.print(f"results: {args.out}")
    if failed := [name for name, each in proof.values["sections"].items() if each["status"] == "failed"]:
        command.console.print(f"failed: {', '.join(failed)}")
        raise SystemExit(1)


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
