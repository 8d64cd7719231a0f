"""Prompt files, group ids and the split, with fixed values: these must never change."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpdm.core.errors import PromptError
from tpdm.data.prompts import Prompt, is_held_out, load_prompts, split_by_hash


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def texts(prompts):
    return [prompt.text for prompt in prompts]


def refusal(path, **options):
    with pytest.raises(PromptError) as caught:
        load_prompts(path, **options)
    return str(caught.value)


def test_ids_never_change():
    assert Prompt("red circle").id == 8621996215894363550
    assert Prompt("red circle", "blue").id == 3632346981820751518
    assert Prompt("猫").id == 6735592706178386536


def test_the_split_never_changes():
    numbered = [f"prompt {i}" for i in range(60)]
    assert [i for i, text in enumerate(numbered) if is_held_out(text, 0.1)] == [
        3,
        13,
        16,
        29,
        30,
        33,
        49,
        56,
        57,
        58,
    ]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_only_adds_texts(text, one, other):
    small, large = sorted((one, other))
    assert not (is_held_out(text, small) and not is_held_out(text, large))
    assert is_held_out(text, 1.0)
    assert not is_held_out(text, 0.0)


def test_the_split_keeps_the_order_and_the_fraction():
    prompts = [Prompt(f"prompt {i}") for i in range(5000)]
    train, held_out = split_by_hash(prompts, 0.1)
    assert 400 < len(held_out) < 600
    assert set(train) | set(held_out) == set(prompts)
    for side in (train, held_out):
        inside = set(side)
        assert [prompt for prompt in prompts if prompt in inside] == side
    assert len(train) + len(held_out) == len(prompts)


def test_the_negative_prompt_changes_the_id_but_not_the_split():
    plain, negative, empty = Prompt("a"), Prompt("a", "b"), Prompt("a", "")
    assert len({plain.id, negative.id, empty.id}) == 3
    train, held_out = split_by_hash([plain, negative], 0.5)
    assert not (train and held_out)


def test_ids_fit_int64():
    assert all(0 <= Prompt(str(i)).id < 2**63 for i in range(100))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "one\n\n  two \r\none\n   \nthree"),
        ("p.txt", b"\xef\xbb\xbfone\ntwo\nthree\n"),
        ("p.TXT", "one\ntwo\nthree\n"),
        ("p.jsonl", '{"prompt": "one"}\n\n"two"\n{"prompt": "two", "other": 3}\n{"prompt": "three"}\n'),
        ("p.json", '["one", {"prompt": "two"}, "three", "one"]'),
        ("p.csv", 'id,prompt\n1,one\n2,two\n\n3,"three"\n'),
        ("p.tsv", "id\tprompt\n1\tone\n2\ttwo\n3\tthree\n"),
    ],
)
def test_every_format_reads_the_same(tmp_path, name, content):
    path = write(tmp_path, name, content)
    assert texts(load_prompts(path)) == ["one", "two", "three"]
    assert texts(load_prompts(path, limit=2)) == ["one", "two"]


def test_named_columns_are_read(tmp_path):
    path = write(tmp_path, "p.csv", 'caption,negative\n"a, b",blurry\n"a, b",\n')
    assert load_prompts(path, column="caption") == [Prompt("a, b", "blurry"), Prompt("a, b")]
    path = write(tmp_path, "p.jsonl", json.dumps({"caption": "a", "negative": None}))
    assert load_prompts(path, column="caption") == [Prompt("a")]


def test_a_named_negative_column_must_exist(tmp_path):
    path = write(tmp_path, "p.csv", "prompt,avoid\na,blurry\nb,\n")
    assert load_prompts(path, negative="avoid") == [Prompt("a", "blurry"), Prompt("b")]
    assert load_prompts(path) == [Prompt("a"), Prompt("b")]
    assert "no column 'without'. The columns are ['avoid', 'prompt']" in refusal(path, negative="without")


def test_quoted_cells_may_contain_line_breaks(tmp_path):
    path = write(tmp_path, "p.csv", 'prompt\n"two\nlines"\none\n')
    assert texts(load_prompts(path)) == ["two\nlines", "one"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("p.txt", "", ["There is no prompt"]),
        ("p.txt", " \n\n", ["There is no prompt"]),
        ("p.json", "[]", ["There is no prompt"]),
        ("p.csv", "", ["There is no prompt"]),
        ("p.xlsx", "", ["'.xlsx'", ".jsonl", ".parquet"]),
        ("p", "one", ["suffix is ''"]),
        ("p.txt", b"one\ntw\xff\n", ["line 2", "not UTF-8"]),
        ("p.txt", "one\n".encode("utf-16"), ["line 1", "not UTF-8"]),
        ("p.jsonl", '"one"\n{"prompt": 3}\n', ["line 2", "The entry is 3. It must be a text"]),
        ("p.jsonl", '"one"\n[1]\n', ["line 2", "The entry is [1]"]),
        ("p.jsonl", '{"prompt": "one", "negative": 3}\n', ["line 1", "The entry is 3"]),
        ("p.jsonl", '"one"\n{"title": "two"}\n', ["line 2", "no column 'prompt', 'text' or 'caption'", "['title']"]),
        ("p.jsonl", '"one"\n{"prompt": \n', ["line 2", "is not valid JSON"]),
        ("p.jsonl", '"one"\n{"prompt": " "}\n', ["line 2", "empty prompt"]),
        ("p.jsonl", '"\\ud800"\n', ["line 1", "surrogate"]),
        ("p.json", '{"prompt": "one"}', ["must be an array", "one dict"]),
        ("p.json", '["one",\n', ["is not valid JSON", "line 2"]),
        ("p.json", '["one", null]', ["entry 2", "The entry is None"]),
        ("p.csv", "title\none\n", ["line 1", "no column 'prompt', 'text' or 'caption'", "['title']"]),
        ("p.csv", "prompt,id\none,1\na red, round thing,2\n", ["line 3", "more cells"]),
        ("p.csv", "id,prompt\n1,one\n2\n", ["line 3", "The entry is None"]),
        ("p.csv", 'prompt\n"one\n', ["line 2", "table is not valid"]),
        ("p.csv", "prompt,prompt\none,two\n", ["'prompt' occurs twice"]),
        ("p.jsonl", '"one"\n' + "1" * 5_000 + "\n", ["line 2", "is not valid JSON"]),
        ("p.json", "[" * 100_000, ["is not valid JSON"]),
    ],
)
def test_errors_contain_the_position_and_the_reason(tmp_path, name, content, parts):
    message = refusal(write(tmp_path, name, content))
    assert name in message
    for part in parts:
        assert part in message


def test_a_plain_text_has_no_negative_column(tmp_path):
    assert "line 1: The entry is a plain text and has no column 'avoid'" in refusal(
        write(tmp_path, "p.txt", "one\n"), negative="avoid"
    )


def test_repeated_prompts_are_kept_on_demand(tmp_path):
    path = write(tmp_path, "p.txt", "one\ntwo\none\n")
    assert texts(load_prompts(path)) == ["one", "two"]
    assert texts(load_prompts(path, distinct=False)) == ["one", "two", "one"]
    assert texts(load_prompts(path, limit=1, distinct=False)) == ["one"]


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "nowhere.txt")
    (tmp_path / "folder.txt").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.txt")


def test_the_rest_after_the_limit_is_not_read(tmp_path):
    path = write(tmp_path, "p.jsonl", '"one"\n"one"\n"two"\nbroken\n')
    assert texts(load_prompts(path, limit=2)) == ["one", "two"]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(PromptError, match="empty prompt"):
        Prompt(text)
