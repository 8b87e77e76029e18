"""What pages take beside the science: claims (`claims`) and figures (`figures`).

Behind no door, for they need the book's tools or run as commands: `pages` (files and pairs),
`captions` (Sphinx), `stored` and `benchmarks` (results on disk), `register` (all pages' claims),
`contents` (their chapters), `explorer`, and one room for each chapter with heavy settings.
"""

from lib.book.claims import ClaimFailed, WeakGuard, agrees, captioned, claim
from lib.book.figures import (
    FORGET,
    MEAN_ONLY,
    MEAN_SQUARE,
    RETAIN,
    SAMPLE,
    SPARE,
    THEORY,
    TYPICAL,
    draw_escape_map,
    draw_heat_map,
    draw_measured_frontier,
    draw_share_frontier,
    draw_step_map,
    draw_value_map,
    step_maps,
    use_book_style,
)

__all__ = [
    "FORGET",
    "MEAN_ONLY",
    "MEAN_SQUARE",
    "RETAIN",
    "SAMPLE",
    "SPARE",
    "THEORY",
    "TYPICAL",
    "ClaimFailed",
    "WeakGuard",
    "agrees",
    "captioned",
    "claim",
    "draw_escape_map",
    "draw_heat_map",
    "draw_measured_frontier",
    "draw_share_frontier",
    "draw_step_map",
    "draw_value_map",
    "step_maps",
    "use_book_style",
]
