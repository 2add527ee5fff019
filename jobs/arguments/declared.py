"""The flags that a command declares: names, values and help, as tyro reads them from the dataclasses."""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)


@dataclass(frozen=True)
class Flag:
    """A flag of a command."""

    name: str
    """With its dashes; empty for a positional argument."""
    value: str
    """Name of its value, such as URI; empty for one without a value."""
    text: str = ""
    """Its help."""
    choices: tuple[str, ...] = ()
    """Values that it takes, where they are few."""


def flag_of(argument: Any) -> Flag:
    """Returns the flag of one of tyro's arguments."""
    lowered = argument.lowered
    name = next((each for each in lowered.name_or_flags if each.startswith("--")), "")
    value = "" if lowered.action == "store_true" else str(lowered.metavar or "VALUE")
    configured = argument.field.argconf.help
    return Flag(name, value, str(configured or ""), tuple(map(str, lowered.choices or ())))


def flags_of(args_type: type) -> list[Flag]:
    """Returns all flags of a command; nested dataclasses are groups of them."""
    configured: Any = Annotated[(args_type, *CONFIG)]
    specification = tyro._parsers.ParserSpecification.from_callable_or_type(
        configured,
        markers=set(),
        description=None,
        parent_classes=set(),
        default_instance=tyro.MISSING_NONPROP,
        intern_prefix="",
        extern_prefix="",
        subcommand_prefix="",
        support_single_arg_types=False,
        prog_suffix="",
    )
    return [flag_of(each.arg) for each in specification.get_args_including_children()]
