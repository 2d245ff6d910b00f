"""The command `pillion`: serve, convert, inspect, reload."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pillion import __version__, address, children, control, convert, flags, models, programs
from pillion.failure import BAD_FLAG, UNAVAILABLE, Failure, Stopped
from pillion.supervisor import Plan, Supervisor

USAGE = """\
Serves language models in CTranslate2's format over HTTP, in batches.

  pillion serve [MODEL]       serve a model until interrupted
  pillion convert SOURCE DIR  convert a model for CTranslate2, with what serving needs
  pillion inspect DIR         say what a converted model is, and whether it can be served
  pillion reload [MODEL]      give a running `pillion serve` another model, without losing a request

pillion COMMAND --help says more.
"""

SERVE = """\
Usage: pillion serve [MODEL] [flags]

MODEL is a directory that CTranslate2 converted, a Hugging Face directory, or a model's name on the hub; without it the small
built-in model is served. What is not converted is converted once, into the user's cache folder.

  --listen ADDRESS:PORT    where to serve HTTP; 8080, :8080 and localhost:8080 are understood [default: 127.0.0.1:8080]
  --device DEVICE          auto, cpu or cuda [default: auto]
  --workers N              worker processes, each with the model [default: 1]; give several --threads and
                           --max-batch-tokens too, since each measures as if it had the machine to itself
  --quantization TYPE      of a conversion: int8, int8_float32, int8_float16, int8_bfloat16, int16, float16, bfloat16 or float32
                           [default: int8 on a processor, float16 on a GPU]
  --model MODEL            another way to give MODEL
  --binaries DIR           use pillion-proxy and pillion-worker from there
  --help                   print this

Every flag that `pillion-proxy --help` and `pillion-worker --help` list can be given too. Each flag is also an environment
variable: PILLION_ and the flag in capitals, such as PILLION_WORKERS. Ctrl-C answers what was admitted, then ends; a second
one ends at once.
"""

CONVERT = """\
Usage: pillion convert SOURCE DIR [--quantization TYPE]

Converts a Hugging Face directory, or a model's name on the hub, into DIR, which must not exist yet. Takes along the tokenizer,
the chat template and the generation settings. Needs: pip install 'pillion[convert]'.

  --quantization TYPE      int8, int8_float32, int8_float16, int8_bfloat16, int16, float16, bfloat16 or float32
                           [default: int8, or float16 where there is a GPU]
"""

INSPECT = """\
Usage: pillion inspect DIR

Says what a converted model is: its shape, positions, end of sequence, chat template and memory, and whether it can be served.
The exit code is 0 if it can.
"""

RELOAD = """\
Usage: pillion reload [MODEL] [--listen ADDRESS:PORT] [--quantization TYPE]

Starts a worker with the model beside each one that runs, waits until it is loaded, and lets it take over. Requests notice
nothing. Both models are in memory meanwhile. A model that does not load changes nothing.

  MODEL                    as for `pillion serve` [default: the converted directory of before, read again]
  --listen ADDRESS:PORT    where `pillion serve` serves [default: 127.0.0.1:8080]
  --device DEVICE, --quantization TYPE
                           as for `pillion serve`, of a conversion
"""

# The built-in model answers this.
EXAMPLE = "What is 17 + 25?"
BACKLOG = 1024


def main() -> int:
    """Runs the command; its exit code."""
    arguments = sys.argv[1:]
    commands: dict[str, tuple[Callable[[list[str]], int], str]] = {
        "serve": (serve, SERVE),
        "convert": (convert_to, CONVERT),
        "inspect": (inspect, INSPECT),
        "reload": (reload, RELOAD),
    }
    command = arguments[0] if arguments else "--help"
    if command in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0 if arguments else BAD_FLAG
    if command in ("--version", "-V"):
        print(f"pillion {__version__}")
        return 0
    if command not in commands:
        print(f"pillion: there is no command {command!r}; pillion --help lists those there are", file=sys.stderr)
        return BAD_FLAG
    run, usage = commands[command]
    if any(argument in ("--help", "-h") for argument in arguments[1:]):
        print(usage, end="")
        return 0
    for number in children.stopping():
        signal.signal(number, stop)
    try:
        return run(arguments[1:])
    except Failure as failure:
        print(f"pillion: {failure}", file=sys.stderr)
        return failure.code
    except OSError as error:
        # Whatever the system refuses that nobody expected it to: a full disk, say.
        print(f"pillion: {error.filename or command}: {error.strerror or error}", file=sys.stderr)
        return UNAVAILABLE
    except Stopped as stopped:
        convert.say("stopped")
        # Nothing was promised yet by serving. What else was asked for has not been done.
        return 0 if command == "serve" else 128 + stopped.number


def stop(number: int, _: object) -> None:
    """Ends whatever is being prepared. A second signal changes nothing: what is left is a few clean-ups."""
    for other in children.STOPPING:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


def serve(arguments: list[str]) -> int:
    """`pillion serve`."""
    own = {"--listen", "--device", "--workers", "--quantization", "--model", "--binaries"}
    folder = after("--binaries", arguments) or os.environ.get("PILLION_BINARIES")
    found = programs.find(folder)

    def known() -> tuple[flags.Known, flags.Known]:
        return (flags.of_program(found.proxy, found.environment), flags.of_program(found.worker, found.environment))

    line = flags.read(arguments, own, known)
    at_most(line.places, 1, "pillion serve")
    if line.places and "--model" in line.own:
        raise Failure("the model is given twice, as MODEL and as --model", BAD_FLAG)
    workers = number("--workers", setting(line, "--workers") or "1", 64)
    device = setting(line, "--device") or "auto"
    wanted = address.parse(setting(line, "--listen") or address.DEFAULT)
    kind = setting(line, "--quantization")
    if kind:
        convert.quantization(kind, device, found)
    place = (line.places or [setting(line, "--model")])[0]
    builtin = models.Source(str(programs.BUILTIN.resolve()), "builtin", converted=True)
    source = builtin if place is None else models.find(place)

    listener, bound = address.bind(wanted)
    model = convert.converted(source, kind, device, found)
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise address.refused(bound, error) from None
    sockets = control.Sockets(bound)
    both = [] if given(line.proxy, "--socket") else ["--socket", str(sockets.folder / "worker.sock")]
    name = [] if given(line.worker, "--model-name") else ["--model-name", source.name]
    prompt = EXAMPLE if source.name == "builtin" else "Once upon a time"
    plan = Plan(
        programs=found,
        proxy=["--listen", str(bound), *both, *line.proxy],
        worker=["--device", device, *both, *name, *line.worker],
        model=str(model),
        workers=workers,
        listener=listener,
        sockets=sockets,
        hints=[
            f"serving {source.name} on {bound.url} - try:",
            f'  curl -s {bound.url}/generate -d \'{{"text": "{prompt}", "max_new_tokens": 10}}\'',
        ],
    )
    try:
        return Supervisor(plan).run()
    finally:
        sockets.remove()


def given(words: list[str], flag: str) -> bool:
    """Whether a flag of the programs is given, on the command line or by the environment."""
    return flag in [word.partition("=")[0] for word in words] or variable(flag) in os.environ


def convert_to(arguments: list[str]) -> int:
    """`pillion convert`."""
    line = flags.read(arguments, {"--quantization"}, lambda: ({}, {}))
    if len(line.places) != 2:
        raise Failure("pillion convert takes SOURCE and DIR", BAD_FLAG)
    source, target = models.find(line.places[0]), Path(line.places[1])
    found = programs.find(os.environ.get("PILLION_BINARIES"))
    kind = convert.quantization(setting(line, "--quantization"), "auto", found)
    if source.converted:
        raise Failure(f"{line.places[0]}: is converted already", BAD_FLAG)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Failure(f"{target}: exists already; name a directory that does not", BAD_FLAG)
    convert.convert(source, kind, target.absolute(), found)
    return 0


def inspect(arguments: list[str]) -> int:
    """`pillion inspect`: the worker knows."""
    if len(arguments) != 1:
        raise Failure("pillion inspect takes DIR", BAD_FLAG)
    found = programs.find(os.environ.get("PILLION_BINARIES"))
    os.execve(found.worker, ["pillion-worker", "inspect", arguments[0]], found.environment)


def reload(arguments: list[str]) -> int:
    """`pillion reload`."""
    line = flags.read(arguments, {"--listen", "--device", "--quantization", "--model"}, lambda: ({}, {}))
    at_most(line.places, 1, "pillion reload")
    served = address.parse(setting(line, "--listen") or address.DEFAULT)
    place = (line.places or [line.own.get("--model")])[0]
    model = None
    if place is not None:
        source = models.find(place)
        model = source.place
        if not source.converted:
            found = programs.find(os.environ.get("PILLION_BINARIES"))
            device = setting(line, "--device") or "auto"
            model = str(convert.converted(source, setting(line, "--quantization"), device, found))
    answer = control.ask(served, {"model": model})
    if answer["code"]:
        raise Failure(answer["said"], answer["code"])
    convert.say("a new worker serves since now; the one before has ended")
    return 0


def setting(line: flags.Line, flag: str) -> str | None:
    """A flag of one's own, or its environment variable."""
    return line.own[flag] if flag in line.own else os.environ.get(variable(flag)) or None


def variable(flag: str) -> str:
    """The environment variable of a flag."""
    return "PILLION_" + flag.removeprefix("--").replace("-", "_").upper()


def after(flag: str, arguments: list[str]) -> str | None:
    """The value of a flag that must be known before all others."""
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag:
            return flags.take(flag, arguments[place + 1 :])
    return None


def at_most(places: list[str], count: int, command: str) -> None:
    """Refuses what is given beside the model."""
    if len(places) > count:
        raise Failure(f"{command} takes one MODEL, and there are {len(places)}: {', '.join(places)}", BAD_FLAG)


def number(flag: str, text: str, most: int) -> int:
    """A whole number from 1 to `most`."""
    if text.isascii() and text.isdigit() and 1 <= int(text) <= most:
        return int(text)
    raise Failure(f"{flag} does not take {text!r}, only a whole number from 1 to {most}", BAD_FLAG)
