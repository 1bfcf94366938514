"""The files below a folder or behind a glob, in a fixed order; linked folders are followed."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

HIDDEN, FOLLOWED = "hidden", "followed"
Aside = Callable[[str, str], None]  # is called with a name, and why it is not read (or FOLLOWED)


def below(folder: Path, aside: Aside, own: Path | None = None, hidden: bool = False) -> list[Path]:
    """The files below a folder, also behind links to folders, but not in the folder `own`. No
    folder is read twice, so that links in a circle end; what is hidden (`.git`) is left out unless
    `hidden`."""
    top = folder.resolve()
    seen = {top}
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop(0)
        try:
            # links come last: a folder is known by its own name, where it is here by that, too
            entries = sorted(os.scandir(here), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            aside(here.relative_to(folder).as_posix(), f"cannot be read ({error.strerror})")
            continue
        for entry in entries:
            path = here / entry.name
            name = path.relative_to(folder).as_posix()
            if entry.name.startswith(".") and not hidden:
                aside(name, HIDDEN)
            elif _is(entry.is_file):
                found.append(path)
            elif not _is(entry.is_dir):
                aside(name, "a link to nothing" if entry.is_symlink() else "not a regular file")
            else:
                real = path.resolve()
                if real == own:
                    continue
                # a folder in which this is, or that is read by its own name, unless that is hidden
                around = entry.is_symlink() and (
                    top.is_relative_to(real)
                    or (
                        real.is_relative_to(top)
                        and (
                            hidden
                            or not any(p.startswith(".") for p in real.relative_to(top).parts)
                        )
                    )
                )
                if around or real in seen:
                    aside(name, "a link to a folder that is read already")
                    continue
                if entry.is_symlink():
                    aside(name, FOLLOWED)
                seen.add(real)
                waiting.append(path)
    return sorted(found)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False


def behind(pattern: str, aside: Aside, own: Path | None) -> tuple[Path, list[Path]]:
    """The folder that a glob begins in, and the files that it matches."""
    parts = Path(pattern).parts
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    try:
        if "**" in parts:
            matches = _any_depth(parts, aside, own)
        else:
            matches = [Path(match) for match in glob.glob(pattern)]  # noqa: PTH207 (absolute, too)
        return base, sorted(match for match in matches if match.is_file())
    except (OSError, ValueError, re.error):
        return base, []


def _any_depth(parts: Sequence[str], aside: Aside, own: Path | None) -> list[Path]:
    """What a glob with `**` matches: any number of folders."""
    place = parts.index("**")
    rest = parts[place:] if parts[-1] != "**" else (*parts[place:], "*")
    start = str(Path(*parts[:place]))
    hidden = any(part.startswith(".") for part in rest)

    def links(name: str, why: str) -> None:
        if why != HIDDEN:
            aside(name, why)

    found = []
    for base in glob.glob(start) if glob.has_magic(start) else [start]:  # noqa: PTH207
        if Path(base).is_dir():
            paths = below(Path(base), links, own, hidden)
            found += [p for p in paths if _matches(p.relative_to(base).parts, rest)]
    return found


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path's parts are a pattern's; `*` and `**` stand for nothing hidden."""
    if not pattern:
        return not parts
    first, *rest = pattern
    if first == "**" and _matches(parts, rest):
        return True
    if not parts or (parts[0].startswith(".") and not first.startswith(".")):
        return False
    if first == "**":
        return _matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], first) and _matches(parts[1:], rest)
