"""Columns of a prompt file are used, or named in a message.

In users' files the column of negative prompts was called ``negative_prompt`` or ``Negative``, or followed ``prompt, ``
in the header. The command succeeded without the negative prompts. Public prompt sets call their column ``Prompt``,
which was refused, and the command line had no option to name it.
https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/1027
https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/5699
https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/12158
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.tiny_runs import SECTIONS
from tpdm.cli import app
from tpdm.config.loader import make_recipe
from tpdm.core.errors import PromptError
from tpdm.data.prompts import Prompt, load_prompts, load_source
from tpdm.training.build import choose_prompts

SETS = Path(__file__).parents[3] / "shared" / "prompts"
HEADERS = [
    ("prompt", "negative"),
    ("prompt", "negative_prompt"),
    ("prompt", " negative"),
    ("Prompt", "Negative"),
    ("PROMPT", "negative prompt"),
    ("Prompt ", "Negative-Prompt"),
    ("text", "neg_prompt"),
    ("caption", "Neg"),
    ("positive_prompt", "negative_prompt"),
]
ROWS = [("a cat", "blurry"), ("a dog", "")]
WANTED = [Prompt("a cat", "blurry"), Prompt("a dog")]


def write(folder, kind, header, rows=ROWS):
    path = folder / f"p.{kind}"
    objects = [dict(zip(header, row, strict=True)) for row in rows]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(objects), path)
        return path
    if kind == "jsonl":
        text = "\n".join(json.dumps(one) for one in objects)
    elif kind == "json":
        text = json.dumps(objects)
    else:
        separator = "," if kind == "csv" else "\t"
        text = "".join(separator.join(row) + "\n" for row in (header, *rows))
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path, **options):
    with pytest.raises(PromptError) as caught:
        load_prompts(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("header", HEADERS, ids=lambda header: ",".join(header))
def test_usual_names_are_read_in_every_format(tmp_path, caplog, kind, header):
    assert load_prompts(write(tmp_path, kind, header)) == WANTED
    assert not caplog.records


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_unused_columns_are_logged_once(tmp_path, caplog, kind):
    path = write(tmp_path, kind, ("id", "Prompt", "avoid"), [("1", "a cat", "x"), ("2", "a dog", "y")])
    assert load_prompts(path) == [Prompt("a cat"), Prompt("a dog")]
    said = f"{path}: Reads column 'Prompt' as the prompt and no negative prompt. Unused columns: id, avoid."
    assert [record.getMessage() for record in caplog.records] == [said]
    caplog.clear()
    assert load_prompts(path, negative="Avoid") == [Prompt("a cat", "x"), Prompt("a dog", "y")]
    assert caplog.text.strip().endswith("'avoid' as the negative prompt. Unused columns: id.")


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("header", "words"),
    [
        (("text", "caption"), "The columns 'text' and 'caption' may each be the prompt"),
        (("Prompt", "prompt"), "The columns 'Prompt' and 'prompt' may each be the prompt"),
        (("title", "negative"), "no column 'prompt', 'text' or 'caption'. The columns are ['negative', 'title']"),
    ],
)
def test_ambiguous_or_missing_columns_are_refused(tmp_path, kind, header, words):
    assert words in refusal(write(tmp_path, kind, header))


def test_two_columns_of_negative_prompts_are_refused_until_one_is_named(tmp_path):
    path = write(tmp_path, "csv", ("prompt", "negative", "Negative_Prompt"), [("a", "x", "y")])
    assert "The columns 'negative' and 'Negative_Prompt'" in refusal(path)
    assert "Name it (prompts.negative, --negative-column)" in refusal(path)
    assert load_prompts(path, negative="negative prompt") == [Prompt("a", "y")]


def test_the_exact_name_wins_over_names_that_differ_in_case(tmp_path):
    path = write(tmp_path, "csv", ("Prompt", "prompt", "PROMPT"), [("a", "b", "c")])
    assert load_prompts(path, column="prompt") == [Prompt("b")]
    assert "The columns 'Prompt' and 'prompt' and 'PROMPT'" in refusal(path, column="pRompt")


def test_a_column_called_prompt_wins_over_the_other_usual_names(tmp_path, caplog):
    path = write(tmp_path, "csv", ("caption", "prompt"), [("a", "b")])
    assert load_prompts(path) == [Prompt("b")]
    assert "Unused columns: caption" in caplog.text


@pytest.mark.parametrize(
    ("kind", "text", "prompts"),
    [
        ("csv", 'prompt, negative\na cat, "blurry, dark"\n', [Prompt("a cat", "blurry, dark")]),
        ("csv", "\ufeffprompt,negative\na cat,blurry\n", [Prompt("a cat", "blurry")]),
        ("csv", "prompt,,\na cat,,\n,,\n\na dog,,,\n", [Prompt("a cat"), Prompt("a dog")]),
        ("csv", "\n\nprompt,negative\na cat,  \n", [Prompt("a cat")]),
        ("csv", 'prompt,negative\n"a cat\non a mat","dark\nblurry"\n', [Prompt("a cat\non a mat", "dark\nblurry")]),
        ("csv", 'prompt\r\n"a ""good"" cat"\r\n', [Prompt('a "good" cat')]),
        ("csv", "prompt,id,id\na cat,1,2\n", [Prompt("a cat")]),
        ("tsv", 'Prompt\tid\n"A" is a letter\t1\n', [Prompt('"A" is a letter')]),
        ("tsv", 'Prompt\tid\nthe word "A"\t1\n', [Prompt('the word "A"')]),
        ("tsv", 'Prompt\tid\n"the word ""A""\non a wall"\t1\n', [Prompt('the word "A"\non a wall')]),
        ("jsonl", '{"prompt": "a cat", "negative": " "}\n{"text": "a dog"}\n', [Prompt("a cat"), Prompt("a dog")]),
    ],
)
def test_files_of_spreadsheets_are_read(tmp_path, kind, text, prompts):
    path = tmp_path / f"p.{kind}"
    path.write_bytes(text.encode("utf-8"))
    assert load_prompts(path) == prompts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,prompt\na,b\n", "line 1: The column 'prompt' occurs twice"),
        ("prompt,id\na red, round thing,2\n", "line 2: The row has more cells than the header"),
        ("prompt;negative\na;b\n", "The columns are ['prompt;negative']"),
        ("prompt,negative\n,blurry\n", "line 2: '' is an empty prompt"),
    ],
)
def test_invalid_tables_are_refused(tmp_path, text, words):
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    assert words in refusal(path)


@pytest.mark.parametrize(("kind", "text"), [("txt", "one\n"), ("jsonl", '"one"\n'), ("json", '["one"]')])
def test_a_column_of_plain_texts_is_refused(tmp_path, kind, text):
    path = tmp_path / f"p.{kind}"
    path.write_text(text, encoding="utf-8")
    for named in ({"column": "caption"}, {"negative": "avoid"}, {"column": "prompt", "negative": "avoid"}):
        assert f"is a plain text and has no column {list(named.values())[-1]!r}" in refusal(path, **named)
    # Recipes of older runs say so, whatever they read.
    assert load_prompts(path, column="prompt") == [Prompt("one")]


def test_only_the_main_process_logs_unused_columns(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    load_prompts(write(tmp_path, "csv", ("id", "prompt"), [("1", "a")]))
    assert not caplog.records


@pytest.fixture
def texts_of_calls(monkeypatch, tmp_path):
    """Prompts of the calls of a pipeline that generates nothing."""
    seen = []

    def sample_to_folder(**options):
        seen.extend((prompt.text, prompt.negative) for prompt in options["prompts"])

    monkeypatch.setattr("tpdm.sampling.generate.sample_to_folder", sample_to_folder)
    return seen


def sample(*words):
    return CliRunner().invoke(app, ["sample", *map(str, words)])


def test_the_command_line_sets_columns_and_a_limit(tmp_path, texts_of_calls):
    path = write(tmp_path, "csv", ("caption", "text", "avoid"), [("a", "b", "c"), ("a", "b", "c"), ("d", "e", "f")])
    answer = sample("--prompts", path)
    assert answer.exit_code == 2
    assert "Name it (prompts.column, --prompt-column)" in answer.output
    options = ["--prompt-column", "caption", "--negative-column", "avoid", "--limit", 2]
    assert sample("--prompts", path, *options).exit_code == 0
    assert texts_of_calls == [("a", "c"), ("a", "c")]


@pytest.mark.parametrize("option", ["--prompt-column", "--negative-column", "--limit"])
def test_options_of_a_prompt_file_are_refused_without_one(texts_of_calls, option):
    answer = sample("--prompt", "a", option, "2")
    assert answer.exit_code == 2
    assert f"Error: {option} is 2 without --prompts." in answer.output
    assert texts_of_calls == []


def test_a_recipe_reads_the_same_columns(tmp_path):
    rows = [(str(n), f"prompt {n}", "dark") for n in range(40)]
    path = write(tmp_path, "tsv", ("Category", "Prompt", "Negative_Prompt"), rows)
    prompts = {"source": str(path), "limit": 30}
    train, validation = choose_prompts(make_recipe({"name": "a", **SECTIONS, "prompts": prompts}))
    assert {p.text for p in (*train, *validation)} == {f"prompt {n}" for n in range(30)}
    assert {p.negative for p in (*train, *validation)} == {"dark"}


@pytest.mark.parametrize(("name", "count"), [("PartiPrompts.tsv", 1632), ("geneval.jsonl", 553)])
def test_public_prompt_sets_are_read_unchanged(tmp_path, caplog, name, count, texts_of_calls):
    path = SETS / name
    if not path.is_file():
        pytest.skip("the sets are not here")
    prompts = load_prompts(path, distinct=False)
    assert len(prompts) == len(load_source(str(path))) == count
    if path.suffix == ".tsv":
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        assert [p.text for p in prompts] == [line.split("\t")[0].strip() for line in lines]
        assert caplog.records[0].getMessage().endswith("no negative prompt. Unused columns: Category, Challenge, Note.")
    assert sample("--prompts", path, "--limit", 3).exit_code == 0
    assert texts_of_calls == [(p.text, None) for p in prompts[:3]]
    recipe = make_recipe({"name": "a", **SECTIONS, "prompts": {"source": str(path)}})
    train, validation = choose_prompts(recipe)
    assert len(train) > 0.85 * count
    assert len(validation) > 30
