"""Runs one check under every instruction set, where what it compares with takes longer than the check itself."""

from __future__ import annotations

from collections.abc import Iterator

from gatedops import backends

# The fixture `isa` runs a whole test once for each of these. With the portable ops there is one.
ISAS = backends.available_isas()[-1:] if backends.forced_backend() == "portable" else backends.available_isas()


def every_set() -> Iterator[str]:
    """Yields every instruction set of this machine, in force until the next one. A failed test shows the last name."""
    for isa in ISAS:
        with backends.force_cpu(isa):
            print("instruction set:", isa)
            yield isa
