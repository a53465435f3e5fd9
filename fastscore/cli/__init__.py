"""The command line. Importing it, and every --help, costs no torch.

Exit codes: 0 done, 2 bad input, 3 missing package or memory, 4 NaN, Inf or a failed self-check, 5 storage,
70 a fault of fastscore's own, 75 stopped in a run of samples, which the same command goes on with, 129, 130 and 143
ended by SIGHUP, SIGINT and SIGTERM outside of one, 141 nobody reads the output.
FASTSCORE_TRACEBACK=1 shows where an error comes from.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from contextlib import suppress

import click

from fastscore import __version__
from fastscore.cli.commands import GREETING, Commands
from fastscore.cli.completion import completion
from fastscore.cli.demo import demo
from fastscore.cli.doctor import doctor
from fastscore.cli.evaluate import evaluate
from fastscore.cli.export import export, merge
from fastscore.cli.inpaint import inpaint
from fastscore.cli.langevin import langevin
from fastscore.cli.launch import launch
from fastscore.cli.likelihood import likelihood
from fastscore.cli.models import env, models
from fastscore.cli.new import new
from fastscore.cli.plan import plan
from fastscore.cli.plot import plot
from fastscore.cli.process import complete_streams, flush, orderly
from fastscore.cli.report import report
from fastscore.cli.sample import sample
from fastscore.cli.status import status
from fastscore.cli.threads import wait_briefly
from fastscore.cli.train import train, train_classifier
from fastscore.cli.tune import tune
from fastscore.cli.types import shorten
from fastscore.cli.verify import verify
from fastscore.errors import Coded, out_of_memory

DEEPEST = 250  # levels of a path; what walks it stops at some 900


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="fastscore")
@click.pass_context
def group(context: click.Context) -> None:
    """Sample score-based generative models: fast, exact, reproducible to the bit."""
    if context.invoked_subcommand is None:
        click.echo(GREETING, nl=False)


for command in (
    sample, inpaint, langevin, status, verify, export, merge, launch,
    plan, plot, tune, train, train_classifier, evaluate, report, likelihood, models, env, doctor,
    demo, new, completion,
):  # fmt: skip
    group.add_command(command)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit; errors are one message on stderr, never a traceback."""
    wait_briefly()
    complete_streams()
    words = sys.argv[1:] if argv is None else argv
    try:
        with orderly(last=argv is None), warnings.catch_warnings():
            warnings.showwarning = _warn
            _refuse_odd(words)
            code = group.main(words, prog_name="fastscore", standalone_mode=False, obj=list(words))
            flush()
    except SystemExit as error:  # click's own way out: of completions, and of a broken pipe
        _fail({0: 0, 1: 141}.get(int(error.code or 0), 70), "")
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("FASTSCORE_TRACEBACK"):
            traceback.print_exc()
        _fail(*_verdict(_first(error)))
    else:
        sys.exit(code if isinstance(code, int) else 0)  # click returns the code of --help and context.exit


def _first(error: BaseException) -> BaseException:
    """Return the interrupt on whose way out an error came, as of a ZIP file that could not be closed; or the error."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, KeyboardInterrupt):
        at = at.__context__
    return error if at is None else at


def _verdict(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one message of an error."""
    text = str(error)
    match error:
        case click.ClickException():
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "fastscore"
            return error.exit_code, f"{error.format_message()} Try '{path} --help'."
        case click.Abort() if isinstance(error.__cause__, EOFError):  # click takes any for the end of a prompt
            return 5, f"a file ends too early: {error.__cause__}"
        case click.Abort() | KeyboardInterrupt():
            return getattr(error, "code", 130), getattr(error, "word", "interrupted")
        case Coded():
            return error.code, text
        case BrokenPipeError():
            return 141, ""
        case ArithmeticError():
            return 4, text
        case UnicodeEncodeError():
            return 5, f"{text}: this terminal has no such character; set PYTHONUTF8=1"
        case ValueError():
            return 2, text
        case ImportError():
            return 3, f"{error}; install it with: pip install {error.name or 'fastscore'}"
        case OSError():
            return 5, text
        case _ if out_of_memory(error):
            return 3, f"out of memory ({text or type(error).__name__}); use a smaller --batch or fewer samples"
        case Warning():  # python -W error
            return 2, f"{text} (an error because Python runs with -W error)"
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f", {os.path.basename(at.filename)}:{at.lineno}" for at in where)
    return 70, (
        f"{type(error).__name__}{place}: {shorten(text, 300)}. This should not happen: run it again with "
        "FASTSCORE_TRACEBACK=1 and report what it prints"
    )


def _refuse_odd(words: list[str]) -> None:
    """Raise click.UsageError for an empty argument, which as a path is the current folder, and for endless paths."""
    for k, word in enumerate(words):
        if word.count(os.sep) > DEEPEST:
            raise click.UsageError(f"{shorten(word)} has {word.count(os.sep)} levels; a path has at most {DEEPEST}.")
        if word and not (word.startswith("--") and word.endswith("=")):
            continue
        flag = word.rstrip("=") or (words[k - 1] if k and words[k - 1].startswith("-") else f"argument {k + 1}")
        raise click.UsageError(f"{shorten(flag)} is empty; the current folder is '.'.")


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    with suppress(OSError, ValueError):
        click.echo(f"fastscore: {shorten(' '.join(str(message).split()), 600)}", err=True)


def _fail(code: int, message: str) -> None:
    with suppress(OSError, ValueError):  # nobody can be told where stderr is gone; the code says it
        if message:
            click.echo(f"fastscore: error: {shorten(' '.join(message.split()), 1500)}", err=True)
    with suppress(OSError, ValueError):
        flush()
    sys.exit(code)
