"""Results that explain themselves.

`results`: tables on disk with all that they depend on. `tables`: their text. `files`: writing that
a kill cannot harm. `code`: a hash of the code behind a file. `claims`: what pages' claims record.
"""

from lib.store.claims import ClaimRecord, claims_in
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
    this_software,
)

__all__ = [
    "FAILED",
    "ClaimRecord",
    "DamagedResult",
    "MissingResult",
    "Provenance",
    "Result",
    "StaleResult",
    "claims_in",
    "code_hash",
    "load",
    "read",
    "results_below",
    "save",
    "this_device",
    "this_software",
]
