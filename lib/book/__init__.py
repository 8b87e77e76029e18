"""What pages take beside the science: claims (`claims`) and the style of figures (`figures`).

Behind no door, for they need the book's tools or run as commands: `pages` (files and pairs),
`captions` (Sphinx), `stored` and `benchmarks` (results on disk), `register` (all pages' claims),
`contents` (their chapters), `explorer`, the rooms that draw the chapters' figures
(`theory_figures`, `map_figures` and their like), and one room for each chapter with heavy settings.
"""

from lib.book.claims import ClaimFailed, WeakGuard, agrees, captioned, claim
from lib.book.figures import step_maps, use_book_style

__all__ = [
    "ClaimFailed",
    "WeakGuard",
    "agrees",
    "captioned",
    "claim",
    "step_maps",
    "use_book_style",
]
