"""Completion in shells: a script for bash, zsh or fish that knows subcommands, flags, and names that flags take."""

from collections.abc import Mapping, Sequence
from typing import get_args

from jobs.arguments.declared import Flag
from pipeline.config.choices import MODELS, LossName, OptimizerName, ScheduleName
from pipeline.config.fields import field_names
from pipeline.config.presets import recipes

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "image-pipeline"
# Names that flags take whose type is a text.
_NAMES: dict[str, tuple[str, ...]] = {
    "--recipe": tuple(recipes),
    "--show-recipe": tuple(recipes),
    "--set": tuple(f"{name}=" for name in field_names()),
    "--model": MODELS,
    "--optimizer": get_args(OptimizerName),
    "--schedule": get_args(ScheduleName),
    "--loss": get_args(LossName),
}
_BASH = """\
_image_pipeline() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" subcommand="${COMP_WORDS[1]}"
    local words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "%(subcommands)s" -- "$word"))
        return
    fi
    case "$subcommand:$before" in
%(values)s
    esac
    case "$word" in
        -*) ;;
        *)
            COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
            return
            ;;
    esac
    case "$subcommand" in
%(flags)s
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o filenames -o bashdefault -F _image_pipeline image-pipeline
"""


def script(shell: str, commands: Mapping[str, tuple[str, Sequence[Flag]]]) -> str:
    """Returns the script for a shell of SHELLS. commands: {subcommand: (its line of help, its flags)}."""
    if shell == "fish":
        return _fish(commands)
    names = " ".join(commands)
    values = [
        f'        {name}:{flag.name}) words="{" ".join(_values(flag))}" ;;'
        for name, (_, flags) in commands.items()
        for flag in flags
        if flag.name and _values(flag)
    ]
    values += [
        f'        {name}:{name}) words="{" ".join(flag.choices)}" ;;'
        for name, (_, flags) in commands.items()
        for flag in flags
        if not flag.name and flag.choices
    ]
    words = [
        f'        {name}) words="{" ".join([*(flag.name for flag in flags if flag.name), "--help"])}" ;;'
        for name, (_, flags) in commands.items()
    ]
    text = _BASH % {"subcommands": names, "values": "\n".join(values), "flags": "\n".join(words)}
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def _values(flag: Flag) -> tuple[str, ...]:
    return _NAMES.get(flag.name, flag.choices)


def _fish(commands: Mapping[str, tuple[str, Sequence[Flag]]]) -> str:
    lines = [
        f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {name} -d {_quoted(text)}"
        for name, (text, _) in commands.items()
    ]
    for name, (_, flags) in commands.items():
        seen = f'complete -c {PROGRAM} -n "__fish_seen_subcommand_from {name}"'
        for flag in flags:
            values = f" -a {_quoted(' '.join(_values(flag)))}" if _values(flag) else ""
            if flag.name:
                lines.append(
                    f"{seen} -l {flag.name[2:]}{' -r' if flag.value else ''}{values} -d {_quoted(flag.text[:60])}"
                )
            elif values:
                lines.append(f"{seen}{values}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
