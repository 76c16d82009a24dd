"""Files that are not what they should be: each ends in an error or in quarantine, within limits of time and memory.

Every file is read by a child of its own, which the kernel ends when it takes more than the memory or time below.
"""

import gzip
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

MEMORY = 3 * 2**30  # bytes that a child may take beyond what it has; a .json file of 512 MiB is held as bytes and text
SECONDS = 60  # of a child's time; all files together take less
KEPT = {"instruction": "Where does Mara live?", "output": "Mara lives in Tarn."}
TWO = {"instruction": "Who keeps the mill?", "output": "Odo keeps the mill."}
FIRST, SECOND = json.dumps(KEPT).encode(), json.dumps(TWO).encode()


def between(bad: bytes) -> bytes:
    """A bad line between two good ones."""
    return b"\n".join([FIRST, bad, SECOND])


def row(**columns) -> bytes:
    return between(json.dumps(columns).encode())


def chat(*messages) -> bytes:
    return row(messages=list(messages))


def said(role, content) -> dict:
    return {"role": role, "content": content}


def asked_and(message) -> bytes:
    return chat(said("user", "Hi."), message)


def table(columns: dict) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out, compression="none")
    return out.getvalue()


def damaged_table() -> bytes:
    import pyarrow
    import pyarrow.parquet

    texts, out = [f"Town {n} is far." for n in range(4000)], io.BytesIO()
    data = pyarrow.table({"instruction": texts, "output": texts})
    pyarrow.parquet.write_table(data, out, compression="gzip", row_group_size=2000, use_dictionary=False)
    whole = bytearray(out.getvalue())
    middle = len(whole) * 3 // 4
    whole[middle : middle + 200] = b"\xff" * 200
    return bytes(whole)


def twice_named() -> bytes:
    import pyarrow
    import pyarrow.parquet

    out, column = io.BytesIO(), pyarrow.array(["x"])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column, column], names=["instruction", "instruction"]), out)
    return out.getvalue()


def bomb(start: bytes, pieces: int) -> bytes:
    """An archive of a few MB that unpacks to `pieces` times 64 MiB."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(pieces):
            file.write(b" " * 2**26)
    return out.getvalue()


def rows_of(reason: str, kept: int = 2, count: int = 1):
    return kept, {reason: count}


def refused(words: str):
    return words


PACKED = gzip.compress(b"\n".join(json.dumps({**KEPT, "output": f"Town {n}{n**9}."}).encode() for n in range(3000)))
GOOD_ARRAY = b"[" + FIRST + b",\n" + SECOND
CSV = b"instruction,output\nWhere is it?,It is here.\n"

# name of the kind → (file name, content, what must come out)
CASES = {
    # encodings
    "a line in latin-1": ("a.jsonl", between('{"instruction": "café"}'.encode("latin-1")), rows_of("encoding")),
    "UTF-16 without its mark": ("a.jsonl", between(SECOND).decode().encode("utf-16-le"), refused("UTF-16 without")),
    "UTF-16, big end first, no mark": ("a.json", FIRST.decode().encode("utf-16-be"), refused("UTF-16 without")),
    "UTF-16 that ends in half a character": (
        "a.jsonl",
        FIRST.decode().encode("utf-16") + b"x",
        refused("cannot be read"),
    ),
    "UTF-32": ("a.jsonl", FIRST.decode().encode("utf-32"), refused("UTF-32")),
    "a NUL byte in a text": ("a.jsonl", between(b'{"instruction": "a\x00b", "output": "c"}'), rows_of("bad_json")),
    "an escaped NUL": ("a.jsonl", row(instruction="Say.", output="a\x00b"), rows_of("broken_text")),
    "half of a surrogate pair": ("a.jsonl", between(rb'{"prompt": "x", "completion": "\ud83e"}'), rows_of("encoding")),
    "half of a pair in a name": ("a.jsonl", between(rb'{"\udc00": "x", "completion": "y"}'), rows_of("encoding")),
    "UTF-8 cut inside a character": ("a.jsonl", between('{"a": "ü'.encode()[:-1]), rows_of("encoding")),
    "a mark in the middle of the file": ("a.jsonl", between(b"\xef\xbb\xbf" + SECOND), rows_of("bad_json")),
    "UTF-8 read as latin-1 and saved": (
        "a.jsonl",
        row(prompt="Who?", completion="Itâ€™s Odo."),
        rows_of("broken_text"),
    ),
    "replacement characters": ("a.jsonl", row(prompt="Who?", completion="It\ufffds Odo."), rows_of("broken_text")),
    "latin-1 in an array": ("a.json", GOOD_ARRAY + b',\n{"a": "caf\xe9"}]', rows_of("encoding")),
    "latin-1 in a table": ("a.csv", CSV + "Wo?,Grüße aus Tarn.\n".encode("latin-1"), rows_of("encoding", 1)),
    "latin-1 in a header": ("a.csv", "größe,output\n1,2\n".encode("latin-1"), refused("header")),
    # nesting and sizes
    "ten thousand brackets": ("a.jsonl", between(b"[" * 10_000), rows_of("too_deep")),
    "ten thousand brackets that close": (
        "a.json",
        b"[" + FIRST + b"," + b"[" * 10_000 + b"]" * 10_000 + b"]",
        rows_of("too_deep", 1),
    ),
    "five hundred objects in each other": ("a.jsonl", between(b'{"a":' * 500 + b"1" + b"}" * 500), rows_of("too_deep")),
    "a line of 20 MB without an end": (
        "a.jsonl",
        between(b'{"instruction": "' + b"x" * 20_000_000),
        rows_of("bad_json"),
    ),
    "a line of 70 MB": (
        "a.jsonl.gz",
        gzip.compress(between(b'{"a": "' + b"x" * 70_000_000 + b'"}'), 1),
        rows_of("line_too_long"),
    ),
    "an integer of five thousand digits": ("a.jsonl", between(b'{"a": ' + b"9" * 5000 + b"}"), rows_of("bad_json")),
    "twenty thousand columns": (
        "a.csv",
        b",".join(b"c%d" % n for n in range(20_000)) + b"\n" + b"," * 19_999 + b"\n",
        rows_of("format_unknown", 0),
    ),
    # JSON that is none
    "a name twice": ("a.jsonl", between(b'{"output": "a", "output": "b"}'), rows_of("duplicate_key")),
    "NaN": ("a.jsonl", between(b'{"a": NaN}'), rows_of("nan")),
    "Infinity": ("a.jsonl", between(b'{"a": -Infinity}'), rows_of("nan")),
    "a number beyond all bounds": ("a.jsonl", between(b'{"a": 1e999}'), rows_of("nan")),
    "a comma too many in an object": ("a.jsonl", between(b'{"a": 1,}'), rows_of("bad_json")),
    "a comma too many in an array": ("a.json", GOOD_ARRAY + b",]", rows_of("bad_json")),
    "a comma too many inside an element": ("a.json", b'[{"a": [1,],},' + GOOD_ARRAY[1:] + b"]", rows_of("bad_json")),
    "a bare number": ("a.jsonl", between(b"42"), rows_of("not_an_object")),
    "a bare text": ("a.jsonl", between(b'"Hello."'), rows_of("not_an_object")),
    "null": ("a.jsonl", between(b"null"), rows_of("not_an_object")),
    "a list for a row": ("a.jsonl", between(b"[1, 2]"), rows_of("not_an_object")),
    "two objects on a line": ("a.jsonl", between(FIRST + FIRST), rows_of("bad_json")),
    "Python's quotes": ("a.jsonl", between(b"{'a': 'b'}"), rows_of("bad_json")),
    "a comment": ("a.jsonl", between(b'{"a": 1} // one'), rows_of("bad_json")),
    "names without quotes": ("a.jsonl", between(b"{a: 1}"), rows_of("bad_json")),
    "a last line cut off": ("a.jsonl", between(b'{"instruction": "cut o')[: -len(SECOND)], rows_of("bad_json", 1)),
    "an array cut off": ("a.json", (GOOD_ARRAY + b"]")[:-10], rows_of("bad_json", 1)),
    "an array that goes on after its end": ("a.json", GOOD_ARRAY + b"] [1]", rows_of("bad_json")),
    "a wrapped list cut off": ("a.json", b'{"version": 1, "data": ' + GOOD_ARRAY[:-9], rows_of("bad_json", 1)),
    "an object cut off": ("a.json", b'{"instruction": "Where', rows_of("bad_json", 0)),
    "an array called JSONL, cut off": (
        "a.jsonl",
        (GOOD_ARRAY.replace(b"[", b"[\n") + b"]")[:-10],
        rows_of("bad_json", 1),
    ),
    "several formats in one file": (
        "a.jsonl",
        asked_and(said("assistant", "Ho.")) + b"\nprompt,completion\n",
        (3, {"bad_json": 1}),
    ),
    # nothing in it
    "an empty file": ("a.jsonl", b"", refused("is empty")),
    "white space": ("a.jsonl", b" \n\n\t\n", refused("is empty")),
    "a mark and nothing else": ("a.json", b"\xef\xbb\xbf", refused("is empty")),
    "an empty array": ("a.json", b"[]", refused("is empty")),
    "a header without rows": ("a.csv", b"instruction,output\n", refused("is empty")),
    "an empty archive": ("a.jsonl.gz", gzip.compress(b""), refused("is empty")),
    "a table without rows": ("a.parquet", lambda: table({"prompt": [], "completion": []}), refused("is empty")),
    # archives
    "an archive cut in the middle": ("a.jsonl.gz", PACKED[: len(PACKED) // 2], "damaged_file"),
    "an archive with a wrong checksum": ("a.jsonl.gz", PACKED[:-8] + b"\0" * 8, "damaged_file"),
    "an archive with other bytes behind it": ("a.jsonl.gz", PACKED + b"and more", "damaged_file"),
    "an archive by name only": ("a.jsonl.gz", FIRST, refused("cannot be read")),
    "an archive not by name": ("a.jsonl", gzip.compress(FIRST), refused("end in .gz")),
    "an archive in an archive": ("a.jsonl.gz", gzip.compress(gzip.compress(FIRST)), refused("end in .gz")),
    "an array that unpacks to 640 MiB": ("a.json.gz", lambda: bomb(b"[", 10), refused("may have")),
    "a line that unpacks to 1 GiB": ("a.jsonl.gz", lambda: bomb(FIRST + b"\n{", 16), rows_of("line_too_long", 1)),
    # no file
    "a folder": ("a.jsonl", "folder", refused("folder")),
    "a file that may not be read": ("a.jsonl", "locked", refused("cannot be read")),
    "a link in a circle": ("a.jsonl", "circle", refused("leads nowhere")),
    "a link to nothing": ("a.jsonl", "dangling", refused("leads nowhere")),
    "a pipe": ("a.jsonl", "pipe", refused("pipe")),
    "a device": ("a.jsonl", "device", refused("device")),
    "no file at all": ("a.jsonl", "missing", refused("no such data file")),
    # other things
    "a picture": ("a.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(50), refused("picture")),
    "a PDF": ("a.json", b"%PDF-1.7\n%\xe2\xe3", refused("PDF")),
    "an Office file": ("a.csv", b"PK\x03\x04" + bytes(30), refused("Office")),
    "a spreadsheet by name": ("a.xlsx", b"PK\x03\x04" + bytes(30), refused("must end in")),
    "a page that says 404": ("a.json", b"<!DOCTYPE html><html><title>404</title>", refused("web page")),
    "XML": ("a.json", b"<?xml version='1.0'?><rows/>", refused("XML")),
    "a Git LFS pointer": (
        "a.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        refused("git lfs pull"),
    ),
    "a database": ("a.jsonl", b"SQLite format 3\0" + bytes(80), refused("database")),
    "zstd": ("a.jsonl", b"\x28\xb5\x2f\xfd" + bytes(20), refused("zstd")),
    "prose": ("a.json", b"Mara lives in Tarn.\nShe keeps a mill.\n", rows_of("bad_json", 0, 2)),
    "an unknown ending": ("a.dat", FIRST, refused("must end in")),
    "no ending": ("data", FIRST, refused("must end in")),
    # Parquet
    "Parquet cut off": (
        "a.parquet",
        lambda: table({"prompt": ["x"], "completion": ["y"]})[:-12],
        refused("cannot be read"),
    ),
    "Parquet that is a web page": ("a.parquet", b"<html>404</html>", refused("must be Parquet")),
    "Parquet by another name": ("a.json", lambda: table({"prompt": ["x"], "completion": ["y"]}), refused("is Parquet")),
    "Parquet with a broken page": ("a.parquet", damaged_table, "damaged_file"),
    "Parquet with nested columns": (
        "a.parquet",
        lambda: table({"a": [{"b": [1, None]}], "c": [[{"d": 1.5}]]}),
        rows_of("format_unknown", 0),
    ),
    "Parquet with bytes for text": (
        "a.parquet",
        lambda: table({"prompt": [b"x"], "completion": [b"y"]}),
        rows_of("not_text", 0),
    ),
    "Parquet with a name twice": ("a.parquet", twice_named, refused("name of its own")),
    # tables
    "a quote that never closes": ("a.csv", CSV + b'"Who?,Odo.\nMore,and more\n', rows_of("bad_csv", 1)),
    "text behind a quote": ("a.csv", CSV + b'"Who"?,Odo.\n', rows_of("bad_csv", 1)),
    "a cell too few": ("a.csv", CSV + b"Who?\n", rows_of("wrong_cells", 1)),
    "a cell too many": ("a.csv", CSV + b"Who, and where?,Odo.\n", rows_of("wrong_cells", 1)),
    "a column name twice": ("a.csv", b"output,output\nx,y\n", refused("name of its own")),
    "a NUL byte in a cell": ("a.csv", CSV + b"Who?,O\x00do.\n", rows_of("broken_text", 1)),
    "no header": ("a.csv", b"Where is it?,Here.\nWho?,Odo.\n", rows_of("format_unknown", 0)),
    "another separator": ("a.csv", b"instruction:output\nWho?:Odo.\n", rows_of("format_unknown", 0)),
    "commas in a TSV": ("a.tsv", CSV, rows_of("format_unknown", 0)),
    "JSONL called CSV": ("a.csv", FIRST + b"\n" + FIRST + b"\n", "any"),
    "Windows line ends": ("a.csv", CSV.replace(b"\n", b"\r\n") + b"Who?\r\n", rows_of("wrong_cells", 1)),
    "a mark before the header": ("a.csv", b"\xef\xbb\xbf" + CSV + b"Who?\n", rows_of("wrong_cells", 1)),
    # rows with wrong contents
    "a number for a content": ("a.jsonl", asked_and(said("assistant", 7)), rows_of("not_text")),
    "null for a content": ("a.jsonl", asked_and(said("assistant", None)), rows_of("missing_field")),
    "an object for a content": ("a.jsonl", asked_and(said("assistant", {"a": 1})), rows_of("not_text")),
    "a picture for a content": ("a.jsonl", asked_and(said("assistant", [{"type": "image"}])), rows_of("missing_field")),
    "no content": ("a.jsonl", asked_and({"role": "assistant"}), rows_of("missing_field")),
    "an unknown role": ("a.jsonl", asked_and(said("narrator", "Once.")), rows_of("unknown_role")),
    "a number for a role": ("a.jsonl", asked_and(said(3, "Once.")), rows_of("unknown_role")),
    "no role": ("a.jsonl", asked_and({"content": "Once."}), rows_of("unknown_role")),
    "two questions in a row": ("a.jsonl", asked_and(said("user", "Hello?")), rows_of("role_order")),
    "an answer first": ("a.jsonl", chat(said("assistant", "Ho.")), rows_of("role_order")),
    "system in the middle": ("a.jsonl", asked_and(said("system", "Be kind.")), rows_of("role_order")),
    "an empty turn": ("a.jsonl", asked_and(said("assistant", "  \n ")), rows_of("empty")),
    "an empty list of messages": ("a.jsonl", row(messages=[]), rows_of("missing_field")),
    "a text for a list of messages": ("a.jsonl", row(messages="Hi."), rows_of("missing_field")),
    "a text among messages": ("a.jsonl", row(messages=[said("user", "Hi."), "Ho."]), rows_of("not_text")),
    "no answer": ("a.jsonl", row(instruction="Hi."), rows_of("missing_field")),
    "no question": ("a.jsonl", row(output="Hi."), rows_of("missing_field")),
    "null for an answer": ("a.jsonl", row(instruction="Hi.", output=None), rows_of("missing_field")),
    "a number for an answer": ("a.jsonl", row(instruction="Hi.", output=42), rows_of("not_text")),
    "an object for an answer": ("a.jsonl", row(instruction="Hi.", output={"text": "Ho."}), rows_of("not_text")),
    "an empty row": ("a.jsonl", row(), rows_of("format_unknown")),
    "unknown columns": ("a.jsonl", row(a=1, b=2), rows_of("format_unknown")),
    "a preference pair": ("a.jsonl", row(prompt="Hi.", chosen="Ho.", rejected="No."), rows_of("format_preference")),
    "a judged answer": ("a.jsonl", row(prompt="Hi.", completion="Ho.", label=False), rows_of("format_preference")),
    "running text": ("a.jsonl", row(text="Mara lives in Tarn."), rows_of("format_text")),
    "a tool call that is no JSON": (
        "a.jsonl",
        asked_and({"from": "function_call", "value": "look"}),
        rows_of("bad_tool_call"),
    ),
    "a tool call without a name": (
        "a.jsonl",
        asked_and({"role": "assistant", "content": None, "tool_calls": [{"a": 1}]}),
        rows_of("bad_tool_call"),
    ),
    "tools that are no list": (
        "a.jsonl",
        row(messages=[said("user", "Hi."), said("assistant", "Ho.")], tools="look"),
        rows_of("bad_tools"),
    ),
    "no instances": ("a.jsonl", row(instruction="Hi.", instances=[]), rows_of("missing_field")),
    "instances that are numbers": ("a.jsonl", row(instruction="Hi.", instances=[1]), rows_of("missing_field")),
    "replies that are no list": (
        "a.jsonl",
        row(prompt={"role": "prompter", "text": "Hi.", "replies": 5}),
        rows_of("not_text"),
    ),
    "a reply to nobody": (
        "a.jsonl",
        row(message_id="b", parent_id="a", role="assistant", text="Ho."),
        rows_of("no_parent"),
    ),
    "a reply to itself": (
        "a.jsonl",
        row(message_id="a", parent_id="a", role="assistant", text="Ho."),
        rows_of("no_parent"),
    ),
}


def place(folder: Path, name: str, content) -> Path:
    """The case's file, or what stands in its place."""
    path = folder / name
    links = {"circle": path, "dangling": folder / "nothing.jsonl", "device": Path("/dev/zero")}
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif isinstance(content, str) and content in links:
        path.symlink_to(links[content])
    elif content != "missing":
        path.write_bytes(FIRST if content == "locked" else content() if callable(content) else content)
    if content == "locked":
        path.chmod(0)
    return path


def look(path: str) -> dict:
    """What the library says about a file, in plain values."""
    from finetune_lib.core import FinetuneError
    from finetune_lib.data.quality import clean
    from finetune_lib.data.records import read_conversations

    problems = []
    try:
        kept, report = clean(read_conversations(path), near=None, problems=problems)
    except (FinetuneError, FileNotFoundError) as error:
        return {"error": str(error)}
    put_aside = [(problem.file, problem.line, problem.reason, problem.detail) for problem in problems]
    return {
        "kept": len(kept),
        **{name: getattr(report, name) for name in ("read", "quarantined", "removed")},
        "problems": put_aside[-3:],
        "put_aside": len(put_aside),
    }


def limited(path: str, out: int) -> None:
    """Look at a file as a child that may not take what it likes; no root may read what is locked."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.alarm(SECONDS)
    if os.geteuid() == 0 and Path(path).parent.name == "locked":
        os.setuid(65534)
    os.write(out, json.dumps(look(path)).encode())


def main(folders: list[str]) -> None:
    """One child for each file, one line of JSON for each child."""
    import finetune_lib.data.quality
    import finetune_lib.data.records  # noqa: F401  (imported once, before the children)

    for folder in folders:
        path = Path(folder).read_text()
        inward, outward = os.pipe()
        child = os.fork()
        if not child:
            try:
                limited(path, outward)
            finally:
                os._exit(0)
        os.close(outward)
        with open(inward, "rb") as answer:
            said = answer.read()
        status = os.waitpid(child, 0)[1]
        sys.stdout.write(json.dumps({"ended": status, **(json.loads(said) if said else {})}) + "\n")


@pytest.fixture(scope="module")
def answers():
    """What became of each case: one process reads them all, each in a child of its own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    names = []
    for number, (name, content, _) in enumerate(CASES.values()):
        inside = folder / str(number) / ("locked" if content == "locked" else "open")
        inside.mkdir(parents=True)
        note = folder / f"{number}.txt"
        note.write_text(str(place(inside, name, content)))
        names.append(str(note))
    done = subprocess.run([sys.executable, __file__, *names], capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, done.stderr[-2000:]
    yield dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", CASES)
def test_a_broken_file_ends_in_an_error_or_in_quarantine(answers, kind):
    name, _, expected = CASES[kind]
    got = answers[kind]
    assert got["ended"] == 0 and len(got) > 1, f"the child was ended or crashed: {got}"
    if isinstance(expected, str) and "error" in got:
        assert expected in got["error"] and (name in got["error"] or Path(name).stem in got["error"])
        return
    assert "error" not in got, got
    assert got["read"] == got["kept"] + sum(got["quarantined"].values()) + sum(got["removed"].values())
    assert got["put_aside"] == sum(got["quarantined"].values()) > 0
    assert all(file == name and line >= 1 and reason and detail for file, line, reason, detail in got["problems"])
    if isinstance(expected, tuple):
        assert (got["kept"], got["quarantined"], got["removed"]) == (*expected, {})
    elif expected != "any":
        assert got["quarantined"] == {expected: 1} and got["kept"] > 0


def test_the_table_has_sixty_kinds_and_more():
    assert len(CASES) >= 60


if __name__ == "__main__":
    main(sys.argv[1:])
