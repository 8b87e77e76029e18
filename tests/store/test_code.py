"""The code behind a page: names taken from doors lead to their rooms, and only these count."""

import shutil

import pytest

from lib.book import pages
from lib.store import code as code_version

FILES = {
    "__init__": "",
    "checks": "",
    "near/__init__": "from lib.near.room import f, g\nfrom lib.near.other import h as k\n"
    "from lib.far import constant\nfrom . import spare as kept\n",
    "near/room": "from ..checks import check\nfrom .helper import help\n",
    "near/helper": "from . import spare\n",
    "near/spare": "",
    "near/other": "",
    "far/__init__": "from lib.far.values import constant\n",
    "far/values": "",
    "far/rest": "import lib.near\nvalue = lib.near.k\n",
}
ROOM = {"near/room", "near/helper", "near/spare", "checks"}
NEAR = ROOM | {"near/other", "far/values"}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "lib" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "rooms"),
    [
        ("from lib.near import f", ROOM),
        ("from lib.near import f as g\ng()", ROOM),
        ("from lib import near\nnear.f(near.k)", ROOM | {"near/other"}),
        ("from lib import near as n\nn.k.attribute", {"near/other"}),
        ("import lib.near\nlib.near.k(1)", {"near/other"}),
        ("import lib.near as n\nprint(n.k[0].f)", {"near/other"}),
        ("import lib.near\nlib.near.k(lib.far.constant)", {"near/other", "far/values"}),
        ("from lib.near import constant", {"far/values"}),
        ("from lib.near import kept", {"near/spare"}),
        ("from lib.near import other", {"near/other"}),
        ("import lib.near.other", {"near/other"}),
        ("from lib.near.other import anything", {"near/other"}),
        ("from lib import far\nfar.rest.value", {"far/rest", "near/other"}),
        ("from lib.near import *", NEAR),
        ("from lib import near\nuse(near)", NEAR),
        ("from lib import near\ngetattr(near, 'k')", NEAR),
        ("from lib import near\nn = near\nn.k", NEAR),
        ("from lib import near", NEAR),
        ("import lib.near", NEAR),
        ("from lib.near import unknown", NEAR),
        ("from lib import near\nnear.unknown", NEAR),
        ("import lib\nuse(lib)", NEAR | {"far/rest"}),
        ("def f():\n    if True:\n        from lib.near import k", {"near/other"}),
        ("import libration, library.near\nlibrary.near.f", set()),
    ],
)  # fmt: skip
def test_names_lead_to_the_rooms_that_define_them(root, text, rooms):
    found = code_version.modules_behind([text], root=root)
    assert {path.relative_to(root / "lib").with_suffix("").as_posix() for path in found} == rooms


def test_a_name_that_is_also_a_room_counts_as_both(root):
    (root / "lib" / "near" / "__init__.py").write_text("from lib.near.room import other\n")
    found = code_version.modules_behind(["from lib.near import other"], root=root)
    assert {path.stem for path in found} >= {"room", "other"}


def hashes(root):
    """The hash of every page's code, with the `lib` of a copy of the repository."""
    return {
        page.stem: code_version.code_hash(root / "book" / page.name)
        for page in pages.executable_pages()
    }


def test_editing_a_room_makes_stale_what_uses_it_and_no_other(tmp_path, monkeypatch):
    for name in ("lib", "book"):
        shutil.copytree(code_version.ROOT / name, tmp_path / name)
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    before = hashes(tmp_path)
    wing = tmp_path / "lib" / "stability"
    window = wing / "window.py"
    window.write_text(
        window.read_text().replace('"""', '"""Another docstring. ', 1) + "# comment\n"
    )
    door = wing / "__init__.py"
    door.write_text(door.read_text() + "changed = 1\n")
    assert hashes(tmp_path) == before
    window.write_text(window.read_text() + "changed = 1\n")
    after = hashes(tmp_path)
    assert {page for page in before if after[page] != before[page]} == {"thresholds"}
