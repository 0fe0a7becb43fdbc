"""`shoal`: registers the commands and turns errors into text and exit codes. Importing it must stay cheap."""

from __future__ import annotations

import os
import sys
import traceback

import typer

import shoal
from shoal.cli import backup, bench, chat, convert, cost, data, info, models, serve, train, tune, users
from shoal.cli import eval as eval_command
from shoal.errors import ShoalError

app = typer.Typer(
    name="shoal",
    help="A DeepSeek-class language-model stack that people can afford: train, adapt, run and chat.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"shoal {shoal.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show it and exit."
    ),
) -> None:
    pass


app.command("chat")(chat.command)
app.command("serve")(serve.command)
app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    train.command
)
app.command("convert")(convert.command)
app.command("info")(info.command)
app.command("bench")(bench.command)
app.command("eval")(eval_command.command)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(cost.app, name="cost")
app.add_typer(tune.app, name="tune")
app.add_typer(users.app, name="users")
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)


def run() -> None:
    """The console script: exit 0 done, 1 failed, 2 wrong use, 130 interrupted; a closed pipe is no error."""
    try:
        app()
    except ShoalError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that the last flush has somewhere to go
        sys.exit(0)
    except Exception:
        traceback.print_exc()
        print("error: this is a bug in shoal; please report the lines above", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
