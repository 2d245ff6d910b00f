"""The command line of `pillion serve`: its own flags, and those of the two programs, each passed to whom it belongs."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pillion.failure import BAD_FLAG, UNAVAILABLE, Failure

# A flag as a program's help shows it, and whether it takes a value: "      --listen <ADDRESS:PORT>".
SHOWN = re.compile(r"^ +(?:-\w, )?(--[a-z][a-z-]*)( <)?", re.MULTILINE)
# The supervisor gives these itself.
OWN_TO_GIVE = {"--model", "--listen", "--help", "--version"}

# For each flag, whether it takes a value.
Known = dict[str, bool]


@dataclass
class Line:
    """What a command line says."""

    own: dict[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    proxy: list[str] = field(default_factory=list)
    worker: list[str] = field(default_factory=list)


def of_program(program: Path, environment: dict[str, str]) -> Known:
    """The flags of a program, from its help.

    Raises:
        Failure: it does not start.
    """
    shown = subprocess.run([program, "--help"], env=environment, capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        raise Failure(f"{program} does not start: {shown.stderr.strip()}", UNAVAILABLE)
    return {flag: bool(value) for flag, value in SHOWN.findall(shown.stdout) if flag not in OWN_TO_GIVE}


def read(arguments: list[str], own: set[str], programs: Callable[[], tuple[Known, Known]]) -> Line:
    """Sorts a command line. `own` are flags with a value; `programs` are asked only about flags that are not among them.

    Raises:
        Failure: nobody knows a flag, or it lacks its value.
    """
    line = Line()
    rest = list(arguments)
    asked: tuple[Known, Known] | None = None
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-") or argument == "-":
            line.places.append(argument)
            continue
        flag, equals, value = argument.partition("=")
        if flag in own:
            line.own[flag] = value if equals else take(flag, rest)
            continue
        asked = asked or programs()
        takers = [
            (known, words) for known, words in zip(asked, (line.proxy, line.worker), strict=True) if flag in known
        ]
        if not takers:
            raise Failure(
                f"there is no flag {flag}; pillion serve --help lists its own and names those of the programs", BAD_FLAG
            )
        words = [argument]
        if not equals and takers[0][0][flag]:
            words.append(take(flag, rest))
        for _, taker in takers:
            taker.extend(words)
    return line


def take(flag: str, rest: list[str]) -> str:
    """The value behind a flag.

    Raises:
        Failure: there is none.
    """
    if not rest:
        raise Failure(f"{flag} needs a value", BAD_FLAG)
    return rest.pop(0)
