"""
The demo's corpus: what the running interpreter's library says of itself.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from nv_embed.demo import corpus
from nv_embed.demo.corpus import Entry, Library


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return {entry.name: entry for entry in corpus.read()}


def library(folder: Path, **sources: str) -> list[Entry]:
    """The entries of a library of these modules, written to a folder. The modules have the names of real ones, because only those are looked for."""
    for name, source in sources.items():
        file = folder.joinpath(*name.split("__", 1)).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return [entry for entry in Library(folder).entries() if entry.name.partition(".")[0] in {name.partition("__")[0] for name in sources}]


def names(found: list[Entry]) -> set[str]:
    return {entry.name for entry in found}


def test_a_few_thousand_texts(entries: dict[str, Entry]) -> None:
    assert 3000 < len(entries) < 10000
    assert {entry.kind for entry in entries.values()} == {"module", "class", "function", "method", "property"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("random.choice", "function"),  # a bound method of a hidden instance
        ("os.path.join", "function"),  # posixpath
        ("os.path.exists", "function"),  # genericpath, through a star import
        ("os.path.splitext", "function"),  # its docstring is another function's
        ("os.getcwd", "function"),  # posix
        ("os.walk", "function"),
        ("json", "module"),
        ("json.dumps", "function"),
        ("len", "function"),
        ("open", "function"),
        ("str.split", "method"),
        ("list.append", "method"),
        ("dict", "class"),
        ("OSError", "class"),  # not IOError
        ("collections.deque.appendleft", "method"),
        ("collections.abc.Mapping", "class"),
        ("functools.lru_cache", "function"),
        ("itertools.chain", "class"),
        ("math.gcd", "function"),
        ("datetime.datetime.strptime", "method"),
        ("re.sub", "function"),
        ("asyncio.gather", "function"),  # not asyncio.tasks.gather
        ("concurrent.futures.ThreadPoolExecutor", "class"),  # taken from a submodule when it is used
        ("hashlib.sha256", "function"),  # made at run time
        ("multiprocessing.cpu_count", "function"),
        ("signal.signal", "function"),  # wraps a C function
        ("socket.socket.connect", "method"),  # inherited from a class in C
        ("argparse.ArgumentParser.add_argument", "method"),  # inherited from a private class
        ("pathlib.PurePath.suffix", "property"),
        ("unittest.mock.patch", "function"),
    ],
)
def test_a_thing_has_the_name_it_is_known_by(entries: dict[str, Entry], name: str, kind: str) -> None:
    assert entries[name].kind == kind


@pytest.mark.parametrize(
    "name",
    [
        "random.Random.choice",
        "posixpath.join",
        "posix.getcwd",
        "asyncio.tasks.gather",
        "IOError",
        "typing.Text",
        "secrets.choice",
        "json.decoder.scanstring",
    ],
)
def test_another_name_of_a_thing_is_left_out(entries: dict[str, Entry], name: str) -> None:
    assert name not in entries


def test_private_names_tests_and_programs_are_left_out(entries: dict[str, Entry]) -> None:
    assert [name for name in entries if any(part.startswith("_") for part in name.split("."))] == []
    assert [name for name in entries if name.partition(".")[0] in ("test", "idlelib", "lib2to3", "turtledemo", "tkinter")] == []


def test_names_are_unique_sorted_and_the_same_each_time(entries: dict[str, Entry]) -> None:
    again = corpus.read()
    assert [entry.name for entry in again] == sorted(entries)
    assert again == list(entries.values())


def test_every_text_is_clean_documentation(entries: dict[str, Entry]) -> None:
    assert all(" " in entry.doc and entry.doc == entry.doc.strip() and "\0" not in entry.doc for entry in entries.values())


def test_signatures_leave_out_self(entries: dict[str, Entry]) -> None:
    assert entries["textwrap.TextWrapper.wrap"].signature == "(text)"
    assert entries["str.zfill"].signature == "(width, /)"
    assert entries["collections.namedtuple"].signature.startswith("(typename, field_names, *, ")


def test_no_python_module_is_run() -> None:
    check = (
        "import sys; from nv_embed.demo import corpus; corpus.read();"
        "print([name for name in ('antigravity', 'this', 'smtplib', 'unittest', 'readline', 'tkinter') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_all_decides_what_is_public(tmp_path: Path) -> None:
    found = library(
        tmp_path,
        json='''
__all__ = ["shown"]
__all__ += ["shown_later"]
def shown():
    """Is shown."""
def shown_later():
    """Is shown later."""
def hidden():
    """Is not shown."""
''',
    )
    assert names(found) == {"json.shown", "json.shown_later"}


def test_what_a_module_imported_for_itself_is_not_its_own(tmp_path: Path) -> None:
    found = library(
        tmp_path,
        copy="from json import dumps\ndef copy():\n    'Copies a thing.'\n",
        json="def dumps():\n    'Writes a thing.'\n",
    )
    assert names(found) == {"copy.copy", "json.dumps"}


def test_a_package_shows_what_its_submodules_define(tmp_path: Path) -> None:
    found = library(
        tmp_path,
        json____init__='"""A package."""\nfrom .decoder import Decoder\n',
        json__decoder='class Decoder:\n    """Decodes a thing."""\n    def decode(self, text, *, strict=True):\n        """Decode a text."""\n',
    )
    assert names(found) == {"json", "json.Decoder", "json.Decoder.decode"}
    assert next(entry for entry in found if entry.name == "json.Decoder.decode").signature == "(text, *, strict=True)"


def test_methods_of_a_hidden_instance_are_functions(tmp_path: Path) -> None:
    found = library(
        tmp_path,
        random='class Random:\n    "A source of numbers."\n    def draw(self):\n        "Draw a number."\n_inst = Random()\ndraw = _inst.draw\n',
    )
    assert {(entry.name, entry.kind) for entry in found} == {("random.Random", "class"), ("random.draw", "function")}


def test_a_private_base_class_gives_its_methods_to_the_public_one(tmp_path: Path) -> None:
    found = library(
        tmp_path,
        queue='class _Base:\n    "Is hidden."\n    def get(self):\n        "Get a thing."\nclass Queue(_Base):\n    "A line of things."\n',
    )
    assert names(found) == {"queue.Queue", "queue.Queue.get"}


def test_names_that_import_each_other_in_a_circle_end(tmp_path: Path) -> None:
    found = library(tmp_path, copy="from json import thing\n__all__ = ['thing']\n", json="from copy import thing\n__all__ = ['thing']\n")
    assert found == []
