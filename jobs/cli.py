"""The command `image-pipeline`: one subcommand for each script in jobs/.

It finds the subcommand before it imports anything, so that the list of subcommands appears at once; torch and Ray are
loaded by the subcommands that need them.
"""

import difflib
import importlib
import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence

from jobs.terminal import early

_USER_ERROR = 2
# {subcommand: (module, one line for the list)}
SUBCOMMANDS = {
    "ingest": ("jobs.ingest", "turn raw images into a data set: Parquet shards and a manifest"),
    "mix": ("jobs.datasets.mix", "make one data set of several, to train on them in stated shares"),
    "plan": ("jobs.datasets.plan", "compute what training will read from object storage, and what that costs"),
    "versions": ("jobs.datasets.versions", "list, compare, compact and drop versions; remove images for good"),
    "verify": ("jobs.verify", "check every byte of a data set against its manifest"),
    "train": ("jobs.cifar10", "train and evaluate a classifier on a data set, raw images or CIFAR-10"),
    "evaluate": ("jobs.evaluate", "evaluate a trained model and certify the result, or compare two models"),
    "predict": ("jobs.predict", "write the model's predictions for a folder, an archive or a bucket of images"),
    "export": ("jobs.export", "export a trained model to ONNX and torch.export"),
    "push": ("jobs.push", "push a trained model, its card and its metrics to the Hugging Face Hub"),
    "tune": ("jobs.tune", "search the hyperparameters of a recipe with Ray Tune"),
    "replay": ("jobs.replay", "repeat steps after a checkpoint and compare their losses with the recorded ones"),
    "retrain": ("jobs.retrain", "train on changed data and promote the new model if it is better"),
    "nights": (
        "jobs.workspaces.nights",
        "list the runs of retrain, write their page and metrics, send messages again",
    ),
    "registry": ("jobs.registry", "list, add, promote and roll back versions of models"),
}


def run() -> None:
    """Runs the subcommand that this process's command line names: the entry point of `image-pipeline`."""
    words = sys.argv[1:]
    if words and words[0] in SUBCOMMANDS:
        importlib.import_module(SUBCOMMANDS[words[0]][0])  # here, where a signal needs nothing but to end the process
        from jobs.terminal import command

        command.run_process(lambda: main(words))
    else:
        early.end_of_start()
        try:
            status = main(words)
            sys.stdout.flush()
        except BrokenPipeError:  # `image-pipeline --help | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 128 + signal.SIGPIPE
        sys.exit(status)


def main(words: Sequence[str]) -> int:
    """Runs the subcommand that the first of `words` names, and returns its exit status; 2 if there is none."""
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else _USER_ERROR
    if words[0] == "--version":
        print(f"image-pipeline {importlib.metadata.version('image-pipeline')}")
        return 0
    if words[0] == "--completion":
        return _print_completion(words[1:])
    if words[0] not in SUBCOMMANDS:
        print(f"error: {unknown(words[0])}", file=sys.stderr)
        return _USER_ERROR
    name, *rest = words
    job = importlib.import_module(SUBCOMMANDS[name][0])
    from jobs.terminal import command

    args = command.parse(job.Args, job.__doc__ or "", f"image-pipeline {name}", rest)
    return command.call(job.main, args, getattr(job, "RESUME_HINT", ""))


def _print_completion(words: Sequence[str]) -> int:
    """Prints the script that completes in a shell, and returns the exit status."""
    from jobs.arguments.completion import SHELLS, script
    from jobs.arguments.declared import flags_of

    if len(words) != 1 or words[0] not in SHELLS:
        print(f"error: --completion {' '.join(words)}: give one of {', '.join(SHELLS)}", file=sys.stderr)
        return _USER_ERROR
    modules = {name: importlib.import_module(module) for name, (module, _) in SUBCOMMANDS.items()}
    print(script(words[0], {name: (SUBCOMMANDS[name][1], flags_of(job.Args)) for name, job in modules.items()}), end="")
    return 0


def usage() -> str:
    """Returns the text of `image-pipeline --help`."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in SUBCOMMANDS.items()]
    return "\n".join(
        [
            "usage: image-pipeline SUBCOMMAND [options]",
            "",
            "A distributed data-and-training pipeline for image recognition.",
            "",
            "subcommands:",
            *lines,
            "",
            "image-pipeline SUBCOMMAND --help shows its options and two examples; --version shows the version.",
            "",
            "Completion of subcommands, flags and names:",
            '  bash: eval "$(image-pipeline --completion bash)"   in ~/.bashrc',
            '  zsh:  eval "$(image-pipeline --completion zsh)"    in ~/.zshrc, after compinit',
            "  fish: image-pipeline --completion fish > ~/.config/fish/completions/image-pipeline.fish",
        ]
    )


def unknown(word: str) -> str:
    """Returns the message for a subcommand that doesn't exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(word, SUBCOMMANDS, n=1, cutoff=0.5)
    remedy = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(SUBCOMMANDS)}"
    return f"{word}: no such subcommand; {remedy}"


if __name__ == "__main__":
    run()
