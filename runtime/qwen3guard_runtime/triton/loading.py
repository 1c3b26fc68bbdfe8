"""What a model.py needs to load its model: its folder and its parameters, and a log line for an error.

This module reads the arguments of Triton, but imports nothing of it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from qwen3guard_contract.errors import GuardError, InvalidParameter
from qwen3guard_contract.parameters import PARAMETERS, set_variables
from qwen3guard_contract.text import shown

from qwen3guard_runtime.parameters import StatedParameters


@contextmanager
def loading() -> Iterator[None]:
    """Use this around the code that loads a model. If a GuardError stops the loading, its wire text goes to the
    server's log as one line, where `qwen3guard_server` finds it.

    Triton logs the exception too, but escaped and with its traceback, and then logs other errors after it.
    """
    try:
        yield
    except GuardError as error:
        with suppress(OSError):  # the reason for it is raised all the same
            sys.stderr.write(f"{error.wire_text()}\n")
            sys.stderr.flush()
        raise


def model_folder(args: Mapping[str, str]) -> Path:
    """The version folder that holds model.py and the exported files."""
    return Path(args["model_repository"]) / args["model_version"]


def parameters(args: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> StatedParameters:
    """The `parameters` of config.pbtxt, and in their place what variables of the environment set. Those of the Python
    backend's own are in capital letters.

    Raises InvalidParameter for one that nobody reads: what an operator meant by it would not happen.
    """
    stated = json.loads(args["model_config"])["parameters"]
    read = PARAMETERS.get(args["model_name"], {})
    for name in stated:
        if name not in read and not name.isupper():
            raise InvalidParameter(
                f"The config.pbtxt of {args['model_name']} has a parameter {shown(name)}, which nobody reads; "
                f"there are {', '.join(sorted(read))}."
            )
    values = StatedParameters({name: str(value["string_value"]) for name, value in stated.items()})
    values.variables = {
        parameter: variable
        for variable, (model, parameter) in set_variables(environment).items()
        if model == args["model_name"]
    }
    for parameter, variable in values.variables.items():
        values[parameter] = environment[variable]
        logging.getLogger(__name__).info("%s is %s, by %s.", parameter, shown(values[parameter]), variable)
    return values
