"""Sphinx extension: a captioned figure (`lib.book.captioned`) is a numbered figure of the book.

A notebook shows picture and caption as two outputs, one below the other. Here they become one
figure, with the caption's numbers in it, a number of its own and a label to refer to.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

WIDE = 1.8  # pictures wider than that have panels side by side: on a phone they scroll (book.css)
PLAIN = re.compile(r"Figure (fig-[a-z0-9-]+): (.+)")


class Captions(SphinxTransform):
    """Joins each picture that `captioned` showed with the output that follows, its caption."""

    default_priority = 200  # before labels are collected and figures numbered

    def apply(self, **_: Any) -> None:
        """Replace picture and caption by a figure, everywhere in the document."""
        for bundle in list(self.document.findall(_is_bundle)):
            forms = {form["mime_type"]: form for form in bundle.children}
            label = PLAIN.fullmatch(forms["text/plain"].astext()) if "text/plain" in forms else None
            if label and "image/png" in forms:
                self._join(bundle, forms["image/png"], *label.groups())

    def _join(self, bundle: nodes.Element, picture: nodes.Element, name: str, alt: str) -> None:
        below = bundle.next_node(_is_bundle, descend=False, siblings=True)
        (words,) = (form for form in below.children if form["mime_type"] == "text/markdown")
        (image,) = picture.findall(nodes.image)
        image["alt"] = alt
        first, *rest = words.children
        caption = nodes.caption(first.rawsource, "", *first.children)
        png = Path(self.env.srcdir, image["uri"].lstrip("/")).read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        classes = ["wide"] if width > WIDE * height else []
        figure = nodes.figure("", image, caption, names=[name], classes=classes)
        if rest:
            figure += nodes.legend("", *rest)
        self.document.note_explicit_target(figure, figure)
        below.parent.remove(below)
        bundle.replace_self(figure)


def _is_bundle(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "mime_bundle"


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_transform(Captions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
