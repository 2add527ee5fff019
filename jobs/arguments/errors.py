"""Errors of the command line in one line: the flag, its value, and what is expected, or the nearest flag.

tyro is asked by `tyro._errors`, which isn't part of its stable interface: `pyproject.toml` pins its version, and
`tests/jobs/test_flags.py` tests each kind of error.
"""

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import tyro

from jobs.arguments.declared import Flag, flag_of, flags_of
from pipeline.config.fields import field_names
from pipeline.core.errors import PipelineError

# What people write who come from other tools. A name of a recipe's field is said with `--set`.
_OTHER_WORDS = {
    "lr": "learning-rate", "rate": "learning-rate", "bs": "global-batch-size", "batch-size": "global-batch-size",
    "batch": "global-batch-size", "b": "global-batch-size", "num-epochs": "epochs", "max-epochs": "epochs",
    "gpus": "workers", "num-gpus": "workers", "n-gpus": "workers", "nproc": "workers", "num-workers": "workers",
    "gpu": "device", "cuda": "device", "accelerator": "device", "output": "run-dir", "output-dir": "run-dir",
    "outdir": "run-dir", "save-dir": "run-dir", "out": "run-dir", "out-dir": "run-dir", "dir": "run-dir",
    "dataset": "data", "data-dir": "data", "data-path": "data", "root": "data", "images": "data", "input": "data",
    "source": "data", "arch": "model", "network": "model", "net": "model", "backbone": "model", "config": "recipe",
    "cfg": "recipe", "preset": "recipe", "opt": "optimizer", "sched": "schedule", "scheduler": "schedule",
    "weights": "pretrained", "run": "checkpoint", "model-path": "checkpoint", "image-size": "image_size_px",
    "img-size": "image_size_px", "imgsz": "image_size_px", "size": "image_size_px", "resolution": "image_size_px",
    "input-size": "image_size_px", "wd": "weight_decay", "mixup": "augment.mixup_alpha",
    "patience": "early_stop_epochs", "cutmix": "augment.cutmix_alpha", "early-stopping": "early_stop_epochs",
    "ema": "ema_decay", "amp": "precision",
    "warmup": "warmup_epochs", "smoothing": "label_smoothing", "dtype": "precision", "random-seed": "seed",
}  # fmt: skip
_GPUS = ("gpus", "num-gpus", "n-gpus")
_DASHES = "-–—−"
_CUTOFF, _SURE = 0.6, 0.8


class UsageError(PipelineError):
    """Raised for a command line that can't be parsed; the message is one line."""


def explain(event: Any, arguments: list[str], args_type: type) -> str:
    """Returns one line for a tyro event. arguments: the words of the command line; args_type: its dataclass."""
    if isinstance(event, tyro._errors.UnrecognizedArgs):
        return unknown_word(event.tokens[0], arguments, flags_of(args_type))
    if isinstance(event, tyro._errors.MissingArgs):
        if event.unrecognized_tokens:  # more often a misspelt flag than a forgotten one
            return unknown_word(event.unrecognized_tokens[0], arguments, flags_of(args_type))
        return _missing([flag_of(each.arg) for each in event.missing_arguments])
    argument = getattr(event, "argument", None)
    if argument is None:
        return " ".join(str(getattr(event, "message", event)).split())
    flag = flag_of(argument)
    if isinstance(event, tyro._errors.BadValue):
        return f"{flag.name}: its value is missing; give {flag.name} {flag.value}"
    words = _value_of(flag.name, arguments)
    value = getattr(event, "value", words)
    return f"{flag.name or flag.value} {value}: {_expected(argument.field.type_stripped, value)}"


def unknown_word(word: str, arguments: list[str], flags: list[Flag]) -> str:
    """Returns the line for a word that is no flag and no flag's value: the nearest flag, with the value given."""
    if word[:1] not in _DASHES:
        return _stray_value(word, arguments, flags)
    name, equals, value = word.lstrip(_DASHES).partition("=")
    place = next((n for n, each in enumerate(arguments) if each == word), len(arguments))
    following = value if equals else next(iter(arguments[place + 1 : place + 2]), "")
    following = "" if following[:2] == "--" else following
    nearest = suggestions(name, following, flags)
    remedy = f"did you mean {' or '.join(nearest)}?" if nearest else "--help lists all flags"
    return f"{word.partition('=')[0]}: no such flag; {remedy}"


def suggestions(name: str, value: str, flags: Iterable[Flag]) -> list[str]:
    """Returns what a flag that doesn't exist may have meant: the nearest flags, or `--set FIELD=VALUE`."""
    known = {flag.name.lstrip("-"): flag for flag in flags if flag.name.startswith("--")}
    fields = field_names() if "set" in known else ()
    name = name.replace("_", "-").lower()
    if name in _GPUS and {"workers", "device"} <= {*known}:
        return [f"--workers {value}".rstrip(), "--device gpu"]
    meant = _OTHER_WORDS.get(name)
    if meant in known:
        return ["--device gpu" if meant == "device" else f"--{meant}"]
    short = {each.replace("_", "-").rpartition(".")[2]: each for each in fields}
    short = {each: field for each, field in short.items() if each not in known}
    field = meant if meant in fields else short.get(name) or short.get(f"{name}-px")
    if field is not None:
        return [_set(field, value)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=_SURE)
    if near:
        return [f"--{near[0]}"]
    near = difflib.get_close_matches(name, [*known, *short], n=2, cutoff=_CUTOFF)
    near += [each for each in known if len(name) > 2 and each.startswith(name) and each not in near]
    return [f"--{each}" if each in known else _set(short[each], value) for each in near[:2]]


def _set(field: str, value: str) -> str:
    return f"--set {field}={value or 'VALUE'}"


def _stray_value(word: str, arguments: list[str], flags: list[Flag]) -> str:
    """Returns the line for a value that belongs to no flag."""
    before = next((arguments[n - 1] for n, each in enumerate(arguments) if each == word and n), "")
    before = next((each.partition("=")[0] for each in arguments if each.endswith(f"={word}")), before)
    if any(flag.name == before and not flag.value for flag in flags):
        return f"{before} {word}: {before} takes no value; leave {word} out"
    if "=" in word and any(flag.name == "--set" for flag in flags):
        return f"{word}: belongs to no flag; did you mean --set {word}?"
    first = next((flag.name for flag in flags if flag.name in ("--data", "--checkpoint", "--source")), "")
    remedy = f"did you mean {first} {word}?" if first and len(arguments) == 1 else "--help lists all flags"
    return f"{word}: belongs to no flag; {remedy}"


def _missing(flags: list[Flag]) -> str:
    verb = "is" if len(flags) == 1 else "are"
    names = " and ".join(flag.name or flag.value for flag in flags)
    return f"{names} {verb} missing; give {' '.join(f'{flag.name} {flag.value}'.strip() for flag in flags)}"


def _value_of(name: str, arguments: list[str]) -> str:
    """Returns the value that the command line gives a flag last."""
    found = ""
    for number, each in enumerate(arguments):
        flag, equals, value = each.partition("=")
        if flag.replace("_", "-") == name:
            found = value if equals else " ".join(_untilflag_of(arguments[number + 1 :]))
    return found


def _untilflag_of(words: list[str]) -> list[str]:
    last = next((n for n, each in enumerate(words) if each.startswith("--")), len(words))
    return words[:last]


def _expected(type_: Any, value: str) -> str:
    """Returns what a flag of this type takes, with the nearest choices of a Literal."""
    types = [each for each in (get_args(type_) or (type_,)) if each is not type(None)]
    if get_origin(type_) is Literal or (types and get_origin(types[0]) is Literal):
        choices = [str(each) for each in get_args(type_ if get_origin(type_) is Literal else types[0])]
        near = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
        return f"{f'did you mean {near[0]}? ' if near else ''}there are {', '.join(choices)}"
    if get_origin(type_) is tuple or (types and get_origin(types[0]) is tuple):
        inner = get_args(type_ if get_origin(type_) is tuple else types[0])
        number = "values" if inner[-1] is Ellipsis else f"{len(inner)} values"
        return f"give {number}, each {_word(inner[0])}"
    return f"must be {_word(types[0])}"


def _word(type_: Any) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(type_, str(type_))
