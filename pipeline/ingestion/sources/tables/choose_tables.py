"""Finds the tables of a source that name its files, and their columns."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.recognise.split_words import split_of
from pipeline.ingestion.sources.tables.columns import Choice, choose_columns
from pipeline.ingestion.sources.tables.finder import Finder
from pipeline.ingestion.sources.tables.read import LIST_SUFFIXES, Table, as_utf8, is_table, read_table
from pipeline.ingestion.sources.tables.split_words import split_in

_FEW = 0.2  # share of the rows of the largest table
_MOST_TABLES = 50  # of a source with more, those nearest to its root are read


@dataclass(frozen=True)
class TableOptions:
    """Values given by the user."""

    only: str | None = None  # the name of the table, relative to the source; None: all that name files
    image_column: str | None = None
    label_column: str | None = None
    val_share: float = 0.1


def finder_of(listing: Listing) -> tuple[Finder, list[int]]:
    """Returns a finder of the files that a table may name, and their indices in the listing."""
    images = set(listing.image_rows)
    rows = [row for row, name in enumerate(listing.names) if row in images or not is_table(name)]
    return Finder([listing.names[row] for row in rows], {at for at, row in enumerate(rows) if row in images}), rows


def usable_tables(
    listing: Listing, finder: Finder, options: TableOptions
) -> tuple[list[tuple[Table, Choice]], list[str]]:
    """Returns (tables that name files, with their columns; notes on other tables). Raises SourceError.

    At least one of them has labels.
    """
    problems: list[SourceError] = []
    unused: list[Table] = []
    chosen: list[tuple[Table, Choice]] = []
    for row in table_rows(listing, finder, options.only):
        try:
            table = read_table(listing.member(row), listing.uri, finder.names_file)
            choice = choose_columns(table, finder, split_of, options.image_column, options.label_column)
        except SourceError as error:
            problems.append(error)
            continue
        if choice is None:
            unused.append(table)
        else:
            chosen.append((table, choice))
    if any(choice.label is not None for _, choice in chosen):
        kept = _without_strays(chosen)
        strays = [table.name for table, choice in chosen if (table, choice) not in kept]
        notes = [f"{name}: names few files, and no split as other tables do; left aside" for name in strays]
        return kept, notes + [f"left aside: {str(error).removeprefix(f'{listing.uri}: ')}" for error in problems]
    if problems:
        raise problems[0]
    raise SourceError(_no_table(listing, chosen, unused))


def _without_strays(chosen: list[tuple[Table, Choice]]) -> list[tuple[Table, Choice]]:
    """Returns the tables without those of few rows and of no split beside tables of splits, such as Meta.csv."""
    most = max(table.num_rows for table, _ in chosen)
    if not any(split_of_table(table) or choice.splits for table, choice in chosen):
        return chosen
    return [
        (table, choice)
        for table, choice in chosen
        if split_of_table(table) or choice.splits or table.num_rows > _FEW * most
    ]


def split_of_table(table: Table) -> str:
    """Returns the split in the name of a table or of its folder, "" for none."""
    return split_in(table.name.rpartition("/")[2]) or split_in(table.folder)


def table_rows(listing: Listing, finder: Finder, only: str | None) -> list[int]:
    """Returns the indices of the tables of a listing, those nearest to its root first."""
    if only is not None:
        return [listing.names.index(only)]
    tables = [row for row, name in enumerate(listing.names) if is_table(name)]
    if not tables:
        lists = [row for row, name in enumerate(listing.names) if name.lower().endswith(LIST_SUFFIXES)]
        lists.sort(key=lambda row: listing.names[row].count("/"))
        tables = [row for row in lists[:_MOST_TABLES] if _is_list(listing, row, finder)]
    return sorted(tables, key=lambda row: (listing.names[row].count("/"), listing.names[row]))[:_MOST_TABLES]


def _is_list(listing: Listing, row: int, finder: Finder) -> bool:
    """Whether a text file begins with the name of an image, or a JSON file has such names."""
    member = listing.member(row)
    if listing.names[row].lower().endswith(".json"):
        try:
            columns = read_table(member, listing.uri, finder.names_file).columns
        except SourceError:  # it may be anything
            return False
        return any(finder.naming(values)[1] for values in columns.values())
    data = member.read()
    with suppress(UnicodeDecodeError):  # the text is refused, and said so, where the names in it are ASCII
        data = as_utf8(data)
    words = data.split(b"\n", 1)[0].decode("utf-8", "replace").rsplit(None, 1)
    return len(words) == 2 and finder.names_file(words[0])


def _no_table(listing: Listing, chosen: Sequence[tuple[Table, Choice]], unused: Sequence[Table]) -> str:
    remedy = (
        "the source must hold the table and the images, and the table a column of file names and one of labels "
        "(--image-column, --label-column)"
    )
    for table, choice in chosen:
        others = ", ".join(repr(name) for name in table.columns if name != choice.files) or "none"
        return (
            f"{listing.uri}: {table.name}: column {choice.files!r} names files, and no other column holds labels "
            f"(others: {others}); {remedy}"
        )
    tables = "; ".join(f"{t.name} has {', '.join(map(repr, list(t.columns)[:8]))}" for t in unused[:3]) or "no table"
    return f"{listing.uri}: no column of a table names files that are there ({tables}); {remedy}"


def note_on(table: Table, choice: Choice) -> str:
    """Returns a line that says which columns of a table are used."""
    if choice.label is None:
        return f"{table.name}: files from column {choice.files!r}, no labels; left aside"
    splits = f", splits from column {choice.split!r}" if choice.split else ""
    return f"{table.name}: files from column {choice.files!r}, labels from column {choice.label!r}{splits}"
