"""The command line as a whole: its verbs, and what a person reads when one fails."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import click

from gnothi.cli.alike import alike
from gnothi.cli.compare import compare
from gnothi.cli.ensemble import ensemble
from gnothi.cli.group import Verbs
from gnothi.cli.look import data, recipes
from gnothi.cli.make import demo, embed, export, report
from gnothi.cli.measure import evaluate
from gnothi.cli.pack import pack
from gnothi.cli.search import neighbours
from gnothi.cli.train import plan, train
from gnothi.cli.transfer import transfer

START = """gnothi learns visual representations from unlabelled images.

\b
First steps:
  gnothi demo                              see it work, about three minutes
  gnothi data FOLDER                       look at your images before training
  gnothi plan FOLDER                       what training will cost
  gnothi train FOLDER --out RUN            learn; ends with a verdict and a page
  gnothi neighbours RUN IMAGE --in FOLDER  the images most like one
  gnothi evaluate knn RUN --data FOLDER    how good it is, where there are labels
  gnothi embed RUN FOLDER --out FILE       vectors for other tools

DATA is `photos`, a folder of images, an .npz or .npy file, shards:PATTERN (tar files), tiles:FOLDER (large TIFFs), or a torchvision name such
as cifar10; @train and @test choose a split.

ENCODER is a run's folder (RUN, RUN@teacher, RUN@step-1200, RUN@untrained), an exported folder or an ensemble's, timm:NAME, pixels, hog, colour,
bow-sift or features:FILE.
"""


@click.group(cls=Verbs, help=START, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gnothi")
def cli() -> None:
    """Give all verbs one root; its help is ``START``."""


for verb in (data, pack, recipes, plan, train, compare, transfer, evaluate, ensemble, embed, neighbours, export, report, demo):
    cli.add_command(verb)
alike(cli)


def main() -> None:
    """Run the command line: exit code 0, 2 for a mistake of the user, 128 + N for signal N, 1 for ours."""
    # Compute threads spin shortly, then sleep: those that only spin lose most of their speed when anything else runs (docs/log.md). Read by torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    args = sys.argv[1:]
    try:
        cli.main([*args, "--help"] if args in ([], ["evaluate"], ["ensemble"]) else args, prog_name="gnothi", standalone_mode=False)
    except click.UsageError as error:
        message = error.format_message().removesuffix(".")
        leave(
            f"{message}; see {error.ctx.command_path} --help" if isinstance(error, click.MissingParameter) and error.ctx else message, error.exit_code
        )
    except click.ClickException as error:
        leave(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        leave("interrupted", 130)
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            leave(f"the disk is full ({(error.strerror or '').lower()}); nothing that was written before is lost, make room and go on", 1)
        if error.filename is None:
            raise
        path = Path(os.fsdecode(error.filename))
        path = {".tmp": path.parent, ".part": path.with_suffix("")}.get(path.suffix, path)  # names that a person never wrote
        leave(f"{path} cannot be used: {(error.strerror or str(error)).lower()}", 2)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is not None:
            leave(str(error), code, getattr(error, "aloud", None))
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            leave("out of memory; a smaller training.batch, views.size or backbone.name needs less", 1)
        if str(error) == "Could not determine home directory.":  # of ~name, by pathlib
            leave("a path that begins with ~ names a user who does not exist here; write it out", 2)
        raise
    finally:
        if "gnothi.distributed" in sys.modules:
            sys.modules["gnothi.distributed"].stop()


def leave(message: str, code: int, aloud: bool | None = None) -> None:
    """Say why in one line, once for all processes of a run, and go; ``aloud`` where it is decided already who of them speaks."""
    if os.environ.get("RANK", "0") == "0" if aloud is None else aloud:
        click.echo(f"gnothi: {one_line(message)}", err=True)
    sys.exit(code)


def one_line(text: str, most: int = 2000) -> str:
    """A text whose names may hold anything, as one line that commands no terminal; the middle of a long one is left out."""
    import unicodedata

    commands = ("Cc", "Cf", "Cs", "Zl", "Zp")
    text = "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in commands else c for c in text)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
