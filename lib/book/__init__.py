"""Pages, claims, figures, and the chapters' stored results."""

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
    "draw_escape_map",
    "draw_heat_map",
    "draw_measured_frontier",
    "draw_share_frontier",
    "draw_step_map",
    "draw_value_map",
    "use_book_style",
]
