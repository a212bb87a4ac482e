"""The command that makes a base of a GGUF file."""

from pathlib import Path
from typing import Annotated

import typer

from tunewright import config
from tunewright.cli import interrupts
from tunewright.cli.command_line import console_of, one_line_errors
from tunewright.errors import ConfigError, one_line
from tunewright.store import disk


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A GGUF file of a text model")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that is made")],
) -> None:
    """Convert a GGUF file into a folder of safetensors, config and tokenizer that `model.base` can name.

    Quantized weights become bfloat16 numbers of the same values, as far as bfloat16 has them.

    Exit codes: 0 converted, 2 no file that transformers can convert, or something is at the folder's path.
    """
    console = console_of(as_json=False)
    with one_line_errors(as_json=False, uses_home=False):
        _require_convertible(file, folder)
        config.quiet_libraries()
        console.print(f"converting {file}; this can take some minutes", markup=False)
        with interrupts.at_once():
            from tunewright import serving
            from tunewright.export.answering import read_all_sizes
            from tunewright.export.unfinished import unfinished

            read_all_sizes()
        try:
            with unfinished(disk.free_folder(folder)) as made:
                serving.convert_gguf(file.absolute(), made)
        except OSError as error:
            if error.errno:  # such as a full disk
                raise
            raise _refused(file, error) from error
        except (ValueError, KeyError, RuntimeError, ImportError) as error:  # of transformers, of what it cannot read
            raise _refused(file, error) from error
        console.print(f"a base for the deployment file:\n\n    model: {{base: {folder}}}", markup=False)


def _require_convertible(file: Path, folder: Path) -> None:
    from tunewright.cost_model.shapes import shape_of_gguf

    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder}: is there already; accepted: the name of a new folder")
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; accepted: a GGUF file")
    try:
        shape_of_gguf(file.absolute())
    except ValueError as error:
        raise _refused(file, error) from error


def _refused(file: Path, error: Exception) -> ConfigError:
    said = str(error) if isinstance(error, ValueError) else one_line(error)
    return ConfigError(f"{file}: cannot be converted: {' '.join(said.removeprefix(f'{file.absolute()}: ').split())}")
