"""Results that explain themselves: tables on disk, with all that they depend on."""

from lib.store.code import code_hash
from lib.store.results import (
    FAILED,
    DamagedResult,
    MissingResult,
    Provenance,
    Result,
    StaleResult,
    load,
    read,
    results_below,
    save,
    this_device,
)

__all__ = [
    "FAILED",
    "DamagedResult",
    "MissingResult",
    "Provenance",
    "Result",
    "StaleResult",
    "code_hash",
    "load",
    "read",
    "results_below",
    "save",
    "this_device",
]
