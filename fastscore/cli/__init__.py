"""The command line. Importing it, and every --help, costs no torch.

Exit codes: 0 done, 2 bad input, 3 missing package or memory, 4 NaN, Inf or a failed self-check, 5 storage,
130 interrupted.
"""

from __future__ import annotations

import sys
import warnings

import click

from fastscore import __version__
from fastscore.cli.doctor import doctor
from fastscore.cli.evaluate import evaluate
from fastscore.cli.inpaint import inpaint
from fastscore.cli.langevin import langevin
from fastscore.cli.likelihood import likelihood
from fastscore.cli.models import env, models
from fastscore.cli.plan import plan
from fastscore.cli.sample import sample
from fastscore.cli.threads import wait_briefly
from fastscore.cli.train import train, train_classifier
from fastscore.cli.types import shorten


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fastscore")
def group() -> None:
    """Sample score-based generative models: fast, exact, reproducible to the bit."""


for command in (sample, inpaint, langevin, plan, train, train_classifier, evaluate, likelihood, models, env, doctor):
    group.add_command(command)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit; errors are one message on stderr, never a traceback."""
    wait_briefly()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            group.main(argv, prog_name="fastscore", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "fastscore"
        _fail(error.exit_code, f"{error.format_message()} Try '{path} --help'.")
    except (click.Abort, KeyboardInterrupt):
        _fail(130, "interrupted")
    except ArithmeticError as error:
        _fail(4, str(error))
    except ValueError as error:
        _fail(2, str(error))
    except ImportError as error:
        _fail(3, f"{error}; install it with: pip install {error.name or 'fastscore'}")
    except OSError as error:
        _fail(5, str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        _fail(3, f"out of memory ({error}); use a smaller --batch or fewer samples")
    sys.exit(0)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"fastscore: {shorten(' '.join(str(message).split()), 600)}", err=True)


def _fail(code: int, message: str) -> None:
    click.echo(f"fastscore: error: {shorten(' '.join(message.split()), 600)}", err=True)
    sys.exit(code)
