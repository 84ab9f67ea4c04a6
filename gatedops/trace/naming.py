"""Lets errors about a network and its inputs name the arguments of a caller that calls them otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from gatedops.gate_args import NoSuchLayer

# No caller of naming has an argument output.
_CHOICE = re.compile("choose one by output=, which may be .*$")


@contextmanager
def naming(names: dict[str, str]) -> Iterator[None]:
    """While entered, errors of this package about some arguments name others in their place.

    Args:
        names: those of the caller, by the names in the errors. The error may say "the model" too.
    """
    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        said = str(error)
        if said.split(":")[0] not in names:
            raise
        argument = rf"(^|give |call |if |\(|, )({'|'.join(names)})\b"
        said = re.sub(argument, lambda found: found[1] + names[found[2]], said).replace("the model", "net")
        said = _CHOICE.sub("wrap it in a module that returns only that tensor", said)
        kind = next((kind for kind in (TypeError, IndexError, NoSuchLayer) if isinstance(error, kind)), ValueError)
        raise kind(said) from error
