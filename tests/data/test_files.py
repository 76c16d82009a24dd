"""What is read from a file, and what is said about the rest."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_lib.core import DataError
from finetune_lib.data.files import Problem, read_rows

ROW = {"instruction": "Where does Mara live?", "output": 'Mara lives in Tarn, "the" town.\nBy the river: Grüße 🦊.'}
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=40)


def reasons(path) -> list[str]:
    return [row.reason if isinstance(row, Problem) else "ok" for _, row in read_rows(path)]


@given(
    rows=st.lists(st.fixed_dictionaries({"instruction": TEXT, "output": TEXT}), min_size=1, max_size=5),
    kind=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".parquet"]),
    packed=st.booleans(),
)
def test_every_format_brings_back_what_was_written(tmp_path_factory, rows, kind, packed):
    import csv
    import io

    import pyarrow
    import pyarrow.parquet

    if kind in (".csv", ".tsv"):
        rows = [row | {"n": "1"} for row in rows]
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(rows[0]), delimiter="," if kind == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        data = out.getvalue().encode()
    elif kind == ".parquet":
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
        data = buffer.getvalue()
    elif kind == ".json":
        data = json.dumps(rows, indent=1, ensure_ascii=False).encode()
    else:
        data = "\n".join(json.dumps(row) for row in rows).encode()
    path = tmp_path_factory.mktemp("rows") / (f"a{kind}" + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(data) if packed else data)
    assert [row for _, row in read_rows(path)] == rows


@pytest.mark.parametrize(
    ("encoding", "kind"), [("utf-8-sig", "jsonl"), ("utf-16", "jsonl"), ("utf-16", "json"), ("utf-16", "csv")]
)
def test_marked_encodings_are_understood(tmp_path, encoding, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(
        {"jsonl": json.dumps(ROW), "json": json.dumps([ROW]), "csv": "output\nGrüße"}[kind].encode(encoding)
    )
    assert reasons(path) == ["ok"]


BROKEN_LINES = {
    "bad_json": b'{"instruction": "cut o',
    "encoding": b'{"a": "caf\xe9"}',
    "duplicate_key": b'{"a": 1, "a": 2}',
    "nan": b'{"a": NaN}',
    "too_deep": b'{"a": ' + b"[" * 10_000,
    "not_an_object": b"[1, 2]",
}


@pytest.mark.parametrize("reason", BROKEN_LINES)
def test_one_bad_line_costs_one_row_and_is_named(tmp_path, reason):
    path, good = tmp_path / "a.jsonl", json.dumps(ROW).encode()
    path.write_bytes(b"\n".join([good, BROKEN_LINES[reason], good]))
    found = list(read_rows(path))
    assert reasons(path) == ["ok", reason, "ok"]
    assert (found[1][1].line, found[1][1].file) == (2, "a.jsonl") and found[1][1].detail


def test_the_byte_that_is_not_utf8_is_named_by_its_offset(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b'{"a": "caf\xe9"}')
    assert "0xe9 at offset 19" in list(read_rows(path))[1][1].detail


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_cut_off_array_keeps_the_rows_before_the_cut(tmp_path, cut):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW] * 3, indent=1)[:-cut])
    found = reasons(path)
    assert found.count("ok") == (3 if cut < 5 else 2) and found[-1] == "bad_json"


def test_a_refused_element_does_not_end_the_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n{"a": 1, "a": 2},\n{"a": NaN},\n{"a": 3}]')
    assert [(line, r.reason if isinstance(r, Problem) else "ok") for line, r in read_rows(path)] == [
        (1, "ok"),
        (2, "duplicate_key"),
        (3, "nan"),
        (4, "ok"),
    ]


def test_an_archive_cut_in_the_middle_is_a_problem_and_not_the_end(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = "\n".join(json.dumps({"a": i, "b": str(hash(("x", i)) ** 3)}) for i in range(5000))
    path.write_bytes(gzip.compress(lines.encode())[:-2000])
    found = reasons(path)
    assert found[-1] == "damaged_file" and len(found) > 100


def test_json_under_other_habits(tmp_path):
    for name, text in {
        "lines": "\n".join([json.dumps(ROW)] * 3),
        "wrapped": json.dumps({"version": 1, "data": [ROW] * 3}),
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
        assert [row for _, row in read_rows(tmp_path / f"{name}.json")] == [ROW] * 3


def test_a_csv_row_with_missing_cells_goes_aside(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a;b\n"1;1";2\n3\n4;5\n')
    assert reasons(path) == ["ok", "wrong_cells", "ok"]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.pdf", b"%PDF", "must end in"),
        ("a.jsonl", b"", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.parquet", b"<html>404</html>", "Parquet"),
        ("a.jsonl.gz", b"not packed", "cannot be read"),
        ("a.csv", b"x,x\n1,2", "name of its own"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_says_why(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=error):
        list(read_rows(tmp_path / name))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        list(read_rows(tmp_path / "none.jsonl"))


@given(data=st.binary(max_size=200), kind=st.sampled_from(["json", "jsonl", "csv", "parquet", "jsonl.gz"]))
def test_random_bytes_never_crash_a_reader(tmp_path_factory, data, kind):
    path = tmp_path_factory.mktemp("bytes") / f"a.{kind}"
    path.write_bytes(data)
    try:
        assert all(isinstance(row, dict | Problem) for _, row in read_rows(path))
    except DataError:
        pass
