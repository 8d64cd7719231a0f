"""Parquet files and data sets, without a network."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpdm.core.errors import PromptError
from tpdm.data.prompts import Prompt, load_prompts, load_source


def write(folder, name="p.parquet", **columns):
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def refusal(path, **options):
    with pytest.raises(PromptError) as caught:
        load_source(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_parquet_file_reads_like_the_others(tmp_path):
    path = write(tmp_path, prompt=["one", " two ", "one", "three"], other=[1, 2, 3, 4])
    assert load_prompts(path) == [Prompt("one"), Prompt("two"), Prompt("three")]
    assert load_source(str(path), limit=2) == [Prompt("one"), Prompt("two")]


def test_named_columns_are_read(tmp_path):
    path = write(tmp_path, "odd [1]*.parquet", caption=["a", "b"], negative=["blurry", None], avoid=["x", "y"])
    assert load_prompts(path, "caption") == [Prompt("a", "blurry"), Prompt("b")]
    assert load_prompts(path, "caption", negative="avoid") == [Prompt("a", "x"), Prompt("b", "y")]
    assert load_prompts(path) == load_prompts(path, "caption")
    assert "no column 'title'. The columns are ['avoid', 'caption', 'negative']" in refusal(path, column="title")
    assert "no column 'without'" in refusal(path, column="caption", negative="without")


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"prompt": ["a", ""]}, "row 2: '' is an empty prompt"),
        ({"prompt": ["a", None]}, "row 2: The entry is None. It must be a text"),
        ({"prompt": [1, 2]}, "row 1: The entry is 1. It must be a text"),
        ({"prompt": ["a"], "negative": [3]}, "row 1: The entry is 3. It must be a text"),
        ({"prompt": pa.array([], pa.string())}, "There is no prompt"),
    ],
)
def test_errors_contain_the_row(tmp_path, columns, part):
    assert part in refusal(write(tmp_path, **columns))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"prompt\none\n"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path, content):
    path = tmp_path / "p.parquet"
    path.write_bytes(content)
    assert "cannot be read" in refusal(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = write(tmp_path, prompt=[f"prompt {n}" for n in range(100)])
    path.write_bytes(path.read_bytes()[:-50])
    assert "cannot be read" in refusal(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "p.parquet")


def test_an_unreachable_data_set_is_refused(tmp_path):
    assert "hub:owner/no-such-set: The source cannot be read after 0 rows" in refusal("hub:owner/no-such-set")
    assert "Write hub:owner/name" in refusal("hub:")


def test_a_data_set_is_streamed_by_column(tmp_path):
    """A folder is a data set to `datasets`, by the same code as one of the hub."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "train-0.parquet", text=["a", "b", "a"], picture=[b"1", b"2", b"3"])
    write(tmp_path / "data", "test-0.parquet", text=["c"], picture=[b"4"])
    source = f"hub:{tmp_path}"
    assert load_source(source, "text") == [Prompt("a"), Prompt("b")]
    assert load_source(source, "text", limit=1) == [Prompt("a")]
    assert load_source(source, "text", split="test") == [Prompt("c")]
    assert load_source(source) == [Prompt("a"), Prompt("b")]
    assert "no column 'title'. The columns are ['picture', 'text']" in refusal(source, column="title")
    assert "cannot be read" in refusal(source, column="text", split="dev")


def test_a_missing_package_is_reported(tmp_path, monkeypatch):
    path = write(tmp_path, prompt=["a"])
    for module, source in (("pyarrow.parquet", path), ("datasets", "hub:owner/name")):
        monkeypatch.setitem(sys.modules, module, None)
        assert "pip install -U 'tpdm[data]'" in refusal(source)
