"""The command `fvlm`, also `python -m fvlm`: everything that is no stage of the pipeline.

It works from any folder of the checkout; paths that are given are meant from that folder.
"""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from fvlm.core import stage
from fvlm.core.errors import FvlmError
from fvlm.core.params import PARAMS

COMMANDS = {
    "check": "are all parameters valid, each alone and all together?",
    "preset": "set the values of a preset in params.yaml",
    "verdict": "print what was compared, and what came out of it",
    "experiments": "print what each experiment changed, and what came out of it",
    "predict": "run the trained model on one video, and see where it looks",
    "questions": "print the questions of a published data set as JSON lines",
    "export": "write the trained model and its card for a model hub",
    "calibrate": "test the instrument on control corpora (most of an hour), or that for answers",
    "forget": "have a stage make its work anew",
    "same": "show that an edit changes no result",
}
ANYWHERE = {"predict", "questions"}  # need no checkout: a model may come from the hub
SHELLS = ("bash", "zsh", "tcsh")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that is named first."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in COMMANDS:
        command = import_module(f"fvlm.cli.{given[0]}")
        asks = bool({"-h", "--help"} & set(given))
        anywhere = asks or given[0] in ANYWHERE
        stage.tell_faults(partial(_enter_checkout, needed=not anywhere))
        stage.tell_faults(partial(command.main, given[1:]))
    elif given[:1] == ["completion"]:
        stage.tell_faults(_enter_checkout)  # which presets are there?
        _print_completion(given[1:])
    else:
        _parser().parse_args(given or ["--help"])


def _enter_checkout(*, needed: bool = True) -> None:
    """Go to the folder of params.yaml at or above this one; where one is needed: or FvlmError."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / PARAMS).is_file():
            if folder != here:
                stage.started_in = here
                os.chdir(folder)
            return
    if needed:
        raise FvlmError(
            f"neither {here} nor a folder above it is a checkout of fVLM (with {PARAMS}); go there "
            "first"
        )


def _parser() -> ArgumentParser:
    parser = stage.new_parser(__doc__, "fvlm")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    commands.add_parser("completion", help=f"print completion for a shell: {', '.join(SHELLS)}")
    return parser


def _print_completion(arguments: Sequence[str]) -> None:
    """For bash: `fvlm completion bash > ~/.local/share/bash-completion/completions/fvlm`."""
    import shtab

    asked = stage.new_parser(_print_completion.__doc__, "fvlm completion")
    asked.add_argument("shell", choices=SHELLS)
    shell = asked.parse_args(arguments).shell
    parser = stage.new_parser(__doc__, "fvlm")
    commands = parser.add_subparsers()
    for name, text in COMMANDS.items():
        own = import_module(f"fvlm.cli.{name}").command_line()
        commands.add_parser(name, help=text, parents=[own], add_help=False)
    print(shtab.complete(parser, shell))


if __name__ == "__main__":
    main()
