"""
The file of tokens: what is written, what is read, and what is refused.
"""

import json
import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from program import Done, command, failed, succeeded

from nv_embed import tokens
from nv_embed.errors import InvalidInput
from nv_embed.tokens import BadTokens, Entry, hash_token

HASH = hash_token("a")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def written(file: Path, content: str) -> Path:
    file.write_text(content)
    file.chmod(0o600)
    return file


def test_what_is_added_is_read_and_the_file_holds_hashes_for_its_owner_alone(file: Path) -> None:
    first = tokens.add(file, "app", requests_per_minute=60)
    second = tokens.add(file, "worker", tokens_per_minute=1_000_000)
    assert dict(tokens.read(file)) == {"app": Entry(hash_token(first), 60, None), "worker": Entry(hash_token(second), None, 1_000_000)}
    assert first not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["tokens.toml"]


def test_a_file_that_is_replaced_stays_whose_it_was(file: Path) -> None:
    tokens.add(file, "app")
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 12345, 12346)
    before = file.stat()
    tokens.add(file, "web")
    assert (file.stat().st_mode, file.stat().st_uid, file.stat().st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert file.stat().st_ino != before.st_ino


def test_removing_one_leaves_the_others_and_their_comments(file: Path) -> None:
    written(
        file,
        f'# ours\n\n[a]\nsha256 = "{HASH}"\n\n# the batch jobs\n[b]\nsha256 = "{hash_token("b")}" # since May\n\n[c]\nsha256 = "{hash_token("c")}"\n',
    )
    tokens.remove(file, "a")
    assert file.read_text() == f'# ours\n\n# the batch jobs\n[b]\nsha256 = "{hash_token("b")}" # since May\n\n[c]\nsha256 = "{hash_token("c")}"\n'
    tokens.remove(file, "c")
    tokens.remove(file, "b")
    assert tokens.read(file) == {}
    assert file.read_text().startswith("# ours\n")


def test_a_file_that_is_written_otherwise_is_not_cut_apart(file: Path) -> None:
    content = f'a = {{ sha256 = "{HASH}" }}\n'
    written(file, content)
    with pytest.raises(BadTokens, match="with an editor"):
        tokens.remove(file, "a")
    assert file.read_text() == content


@pytest.mark.parametrize("name", ["", "a b", "a.b", "é", "x" * 65, "[a]"])
def test_a_name_is_a_plain_word(file: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="not a name"):
        tokens.add(file, name)
    assert not file.exists()


def test_a_name_is_taken_once_and_only_what_is_there_is_removed(file: Path) -> None:
    tokens.add(file, "app")
    with pytest.raises(InvalidInput, match="has a token of app already"):
        tokens.add(file, "app")
    with pytest.raises(InvalidInput, match="has no token of web"):
        tokens.remove(file, "web")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[a", "is not TOML"),
        ("a = 1", "it has no sha256"),
        ("[a]\nrequests_per_minute = 1", "it has no sha256"),
        ('[a]\nsha256 = "nve_the-token-itself"', "is not 64 hexadecimal digits"),
        (f'[a]\nsha256 = "{HASH}"\ntoken = "nve_x"', "there is no setting token"),
        (f'[a]\nsha256 = "{HASH}"\nrequests_per_minute = 0', "requests_per_minute is not a whole number above 0"),
        (f'[a]\nsha256 = "{HASH}"\ntokens_per_minute = true', "tokens_per_minute is not a whole number above 0"),
        (f'["a b"]\nsha256 = "{HASH}"', "a name has up to 64"),
        (f'[a]\nsha256 = "{HASH}"\n[b]\nsha256 = "{HASH.upper()}"', "two tables have the same sha256"),
    ],
)
def test_what_is_malformed_is_refused_in_one_line_without_what_it_says(file: Path, content: str, says: str) -> None:
    with pytest.raises(BadTokens, match=says) as raised:
        tokens.read(written(file, content))
    assert str(file) in raised.value.message
    assert "\n" not in str(raised.value)
    assert "nve_" not in str(raised.value)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    tokens.add(file, "app")
    file.chmod(mode)
    with pytest.raises(BadTokens, match="may be written by others") as raised:
        tokens.read(file)
    assert raised.value.hint == f"chmod 0600 {file}"


def run(*arguments: str) -> Done:
    return subprocess.run(command("token", *arguments), capture_output=True, text=True, check=False)


def test_the_command_prints_a_token_once_and_lists_what_is_known_without_it(file: Path) -> None:
    token = succeeded(run("add", "app", "--file", str(file), "--requests-per-minute", "60")).strip()
    assert tokens.read(file)["app"] == Entry(hash_token(token), 60, None)
    listed = succeeded(run("list", "--file", str(file), "--json"))
    assert json.loads(listed) == [{"name": "app", "requests_per_minute": 60, "tokens_per_minute": None}]
    table = succeeded(run("list", "--file", str(file)))
    assert "app" in table
    assert token not in listed + table
    succeeded(run("remove", "app", "--file", str(file)))
    assert json.loads(succeeded(run("list", "--file", str(file), "--json"))) == []
    assert failed(run("remove", "app", "--file", str(file))).startswith("nv-embed: ")
    assert run("add", "app", "--file", str(file), "--requests-per-minute", "0").returncode == 2


ADD_MANY = """
import sys
from pathlib import Path
from nv_embed import tokens
print("ready", flush=True)
sys.stdin.readline()
for number in range(25):
    tokens.add(Path(sys.argv[1]), f"{sys.argv[2]}-{number}")
tokens.remove(Path(sys.argv[1]), f"{sys.argv[2]}-0")
"""


def test_programs_that_change_the_file_at_once_lose_none_of_each_others_changes(file: Path) -> None:
    with ExitStack() as stack:
        command_of = [sys.executable, "-c", ADD_MANY, file]
        writers = [
            stack.enter_context(subprocess.Popen([*command_of, f"writer{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for number in range(4)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    assert set(tokens.read(file)) == {f"writer{writer}-{number}" for writer in range(4) for number in range(1, 25)}
    assert [path.name for path in file.parent.iterdir()] == ["tokens.toml"]
