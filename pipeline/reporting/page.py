"""HTML and Markdown from templates; doesn't load matplotlib, which takes a second."""

import time
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.core.environment import git_commit, machine
from pipeline.core.shares import counted, interval_text, percent_text, share_text
from pipeline.reporting.links import relative_link


def render_page(template: str, folder: str = "", **values: Any) -> str:
    """Returns the text of the template `templates/TEMPLATE`, filled with `values`; HTML is escaped in .html templates.

    folder: absolute path or URI of the folder that the page is for; links to files are made relative to it. Templates
    have the functions counted (a number with its noun), percent, interval and share (of correct and rows, with Wilson's
    interval), href (of a file) and made (when and where the page was written). Raises jinja2.UndefinedError if the
    template names a value that isn't given.
    """
    return _environment(folder, template.endswith(".html")).get_template(template).render(**values)


@lru_cache(maxsize=4)
def _environment(folder: str, escape: bool) -> Environment:
    """Returns the environment of a folder's pages: it compiles each template once, and a report is written often."""
    environment = Environment(
        loader=PackageLoader("pipeline.reporting"), autoescape=escape, undefined=StrictUndefined, trim_blocks=not escape
    )
    environment.globals.update(
        counted=counted, percent=percent_text, interval=interval_text, share=share_text, made=_made
    )
    environment.globals["href"] = lambda target: relative_link(folder, target)
    return environment


def _made() -> str:
    commit = git_commit()
    source = "" if commit == "unknown" else f", commit {commit[:8]}{'+changes' if '+' in commit else ''}"
    return f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, on {machine()}{source}"
