"""The report of an invented demo: complete, self-contained, escaped, chosen by rule."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.folder import IMAGES, POLICIES, PROMPT, metrics, row, summary, write_folder, write_lines
from tests.evaluation.test_layout import read
from tpdm.core.errors import ConfigError
from tpdm.evaluation.report.build import markdown_table, write_report
from tpdm.evaluation.report.conclusions import verdict
from tpdm.evaluation.report.results import choose_images, load_results

CHOSEN = {
    "Largest gain in score": [11, 10],
    "Largest loss in score": [0, 1],
    "Median difference": [5, 6],
    "Fewest steps": [11, 10],
    "Most steps": [0, 1],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("demo") / "run")
    write_report(folder, "A <i>title</i> & more")
    return folder


@pytest.fixture(scope="module")
def html(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_tag_is_closed(html):
    open_tags = []
    for slash, tag in re.findall(r"<(/?)([a-z][a-z0-9]*)", html):
        if slash:
            assert open_tags.pop() == tag
        elif tag not in ("img", "meta"):
            open_tags.append(tag)
    assert open_tags == []


def test_names_policies_numbers_and_origin(html):
    text = read(html).text
    expected = [*POLICIES, verdict(summary()), "14.5 ± 3.5", "−0.200 [−0.300, −0.100] ▼", "−1.000 [−2.000, −0.500] ▲"]
    expected += ["Harder images get more steps", "train 0, test 7", "torch 2.13", "<revision>", "two cores & hope"]
    expected += ["tpdm demo --seed 0", "1 min 30 s", "12 s", "within 0.05 of its best", "4, 8"]
    assert [one for one in expected if one not in text] == []


def test_nothing_is_fetched_or_run(html):
    reader = read(html)
    assert not {"script", "link", "iframe", "object", "base"} & set(reader.tags)
    addresses = [a[key] for a in reader.attributes for key in ("src", "href", "srcset") if key in a]
    assert addresses
    assert [a for a in addresses if not a.startswith("data:image/")] == []
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    policy = next(a["content"] for a in reader.attributes if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_text_is_escaped(html):
    reader = read(html)
    assert f"{PROMPT} 11" in reader.text
    assert "A <i>title</i> & more" in reader.text
    assert not {"i", "shift", "revision"} & set(reader.tags)
    assert "<b>red" not in html


def test_for_phones_and_the_dark(html):
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html


def test_pictures_are_those_of_the_rule(folder, html):
    assert dict(choose_images(load_results(folder).rows_of)) == CHOSEN
    shown = [(a["alt"], a["src"]) for a in read(html).attributes if a.get("class") == "pixels"]
    expected = []
    for indices in CHOSEN.values():
        for i in indices:
            for policy in POLICIES:
                content = (folder / "pictures" / policy / f"{i:04d}.png").read_bytes()
                uri = "data:image/png;base64," + base64.b64encode(content).decode()
                expected.append((f"{policy}: {PROMPT} {i}", uri))
    assert shown == expected
    text = read(html).text.replace("\n", "")
    assert [text.count(f"{rule}“") for rule in CHOSEN] == [1] * 5


def test_plots_are_there(html):
    uris = [a["src"] for a in read(html).attributes if a.get("src", "").startswith("data:image/svg+xml")]
    assert len(set(uris)) == len(uris) == 7 + 5


def test_a_baseline_may_exist_at_only_some_qualities(tmp_path):
    folder = write_folder(tmp_path / "run")
    facts, found = summary(), {"reward": [0.2, 0.1, 0.3]}
    row_ = {"name": "tpdm", "steps_mean": 5.0, "steps_sd": 1.0, "reward_mean": 0.5}
    point = {"quality": 0.0, "gamma": 0.99, "row": row_, "controls": [], "paired": {"grid, equal steps": found}}
    far = {**point, "quality": 1.0, "paired": {"grid, equal steps": found, "tuned, equal steps": found}}
    facts["points"] = [point, far]
    (folder / "summary.json").write_text(json.dumps(facts), encoding="utf-8")
    text = read(write_report(folder, "quality").read_text(encoding="utf-8")).text
    assert "minus gridminus tuned" in text.replace("\n", "")


def test_ties_go_to_the_lower_index():
    rows = {i: {"score": 0.0, "steps": 4} for i in (3, 1, 2)}
    chosen = choose_images({"tpdm": rows, "static-28": rows | {9: {"score": 5.0, "steps": 28}}})
    assert [indices for _, indices in chosen] == [[1, 2]] * 5


@pytest.mark.parametrize("images", [1, 2])
def test_few_images(tmp_path, images):
    folder = write_folder(tmp_path / "run", with_pictures=False)
    write_lines(folder / "results.jsonl", [row(p, i) for p in POLICIES for i in range(images)])
    assert "no image stored" in write_report(folder, "few").read_text(encoding="utf-8")


def test_without_log_and_pictures(tmp_path):
    folder = write_folder(tmp_path / "run", with_metrics=False, with_pictures=False)
    text = read(write_report(folder, "bare").read_text(encoding="utf-8")).text
    assert "No training log was kept." in text
    assert text.count("no image stored") == 10 * 2  # the two that are always shown


def test_without_judge_and_facts(tmp_path):
    folder = write_folder(tmp_path / "run")
    rows = [row(p, i) for p in POLICIES for i in range(IMAGES)]
    judged = ("accuracy", "residual", "objects")
    write_lines(folder / "results.jsonl", [{k: v for k, v in r.items() if k not in judged} for r in rows])
    bare = {"rows": summary()["rows"], "paired": {"static-28": {"reward": [0.2, 0.1, 0.3]}}}
    bare["rows"] = [{k: v for k, v in r.items() if k not in judged} for r in bare["rows"]]
    (folder / "summary.json").write_text(json.dumps(bare), encoding="utf-8")
    text = read(write_report(folder, "bare").read_text(encoding="utf-8")).text
    assert "accuracy" not in text.lower()
    assert "Only the training reward scored these images" in text


def test_judges_of_the_recipe_are_shown_beside_the_reward(tmp_path):
    folder = write_folder(tmp_path / "run")
    judged = summary()
    judged["rows"] = [{**r, "pickscore": 21.25} for r in judged["rows"]]
    judged["paired"] = {name: {**found, "pickscore": [0.4, 0.2, 0.6]} for name, found in judged["paired"].items()}
    (folder / "summary.json").write_text(json.dumps(judged), encoding="utf-8")
    rows = [{**row(p, i), "pickscore": 20.0 + i} for p in POLICIES for i in range(IMAGES)]
    write_lines(folder / "results.jsonl", rows)
    html = write_report(folder, "judged").read_text(encoding="utf-8")
    text = read(html).text
    assert "21.250" in text
    assert "+0.400 [+0.200, +0.600] ▲" in text
    assert "pickscore: a judge that training never saw." in text
    assert "a higher pickscore (" in text
    assert "disagree with the sign of the reward" in text
    assert "pickscore against static-28 (better, significantly)" in text
    assert "Pickscore against steps. Training never saw this judge." in text


def test_large_pictures_keep_their_shape_and_make_no_large_page(tmp_path):
    folder = write_folder(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 256, (768, 1024, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for path in (folder / "pictures").rglob("*.png"):
        shutil.copy(tmp_path / "noise.png", path)
    page = write_report(folder, "large")
    photos = [a["src"] for a in read(page.read_text(encoding="utf-8")).attributes if a.get("class") == "photo"]
    assert len(photos) == len(POLICIES) * 2 * len(CHOSEN)
    with Image.open(io.BytesIO(base64.b64decode(photos[0].split(",", 1)[1]))) as shown:
        assert shown.size == (512, 384)
    # Noise is what compresses worst: pictures make a tenth of this.
    assert page.stat().st_size < len(photos) * 600_000


def test_a_log_cut_off_by_a_kill(tmp_path):
    folder = write_folder(tmp_path / "run")
    with (folder / "train" / "metrics.jsonl").open("a") as f:
        f.write('{"kind": "tr')
    write_report(folder, "cut")
    assert load_results(folder).metrics == metrics()


def test_a_policy_cannot_lead_out_of_the_folder(tmp_path):
    folder = write_folder(tmp_path / "run")
    (tmp_path / "0000.png").write_bytes(b"secret")
    results = load_results(folder)
    assert results.picture("../..", 0) is None
    assert results.picture(str(tmp_path), 0) is None
    assert results.picture("tpdm", 0) is not None


def test_same_folder_same_report(folder, html):
    write_report(folder, "A <i>title</i> & more")
    assert (folder / "report.html").read_text(encoding="utf-8") == html
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["summary.json", "results.jsonl", "broken", "tpdm"])
def test_an_incomplete_folder_is_refused(tmp_path, damage):
    folder = write_folder(tmp_path / "run", with_pictures=False)
    if damage == "broken":
        (folder / "summary.json").write_text("{")
    elif damage == "tpdm":
        write_lines(folder / "results.jsonl", [row("static-28", i) for i in range(3)])
    else:
        (folder / damage).unlink()
    with pytest.raises(ConfigError, match=r"must contain a finished evaluation|Let the evaluation finish"):
        write_report(folder, "no")
    assert not (folder / "report.html").exists()


def test_markdown_table():
    lines = markdown_table({"rows": [{**summary()["rows"][-1], "name": "a|b"}]}).splitlines()
    assert lines == [
        "| policy | steps | s / image | reward | accuracy | residual |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a\\|b | 14.5 ± 3.5 | 0.2500 | 0.1500 | 0.9000 | 8.000 |",
    ]
    assert len(markdown_table(summary()).splitlines()) == 2 + len(POLICIES)
