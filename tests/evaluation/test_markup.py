from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from tpdm.evaluation.report.layout import Figure, Page, Section, Table, render_page

# A parser turns carriage returns and NUL into something else, which is not tested here.
text = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), min_size=1, max_size=30)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        self.text[tag] = ""

    def handle_data(self, data):
        if self.tags:
            self.text[self.tags[-1]] += data

    def all(self, tag):
        return [a for t, a in zip(self.tags, self.attributes, strict=True) if t == tag]


def read(*sections, title="report"):
    reader = Reader()
    reader.feed(render_page(Page(title, "tpdm is better.", sections, {"seeds": "1"})))
    reader.close()
    return reader


EMPTY = read(Section("h"), title="t").tags


@given(text, text)
def test_text_and_attributes_come_back_as_they_were(inside, caption):
    reader = read(Section("h", text=inside, chart=Figure("data:,", caption)))
    assert sorted(reader.tags) == sorted([*EMPTY, "p", "figure", "img", "figcaption"])  # no value became a tag
    assert reader.text["p"].removesuffix("\n") == inside
    assert reader.text["figcaption"].removesuffix("\n") == caption
    assert reader.all("img") == [{"src": "data:,", "alt": caption}]


def test_values_nest_and_are_escaped_once():
    html = render_page(Page("<&>", "<", [Section("<b>", note="'\"")], {"<i>": "&amp;"}))
    assert "<h1>&lt;&amp;&gt;</h1>" in html
    assert '<h2>&lt;b&gt;</h2>\n<p class="note">&#39;&#34;</p>' in html
    assert "<dt>&lt;i&gt;</dt><dd>&amp;amp;</dd>" in html


def test_table():
    reader = read(Section("h", Table(["name", "n"], [["a<b", "1"], ["c", "2"]], marked={1})))
    assert reader.tags.count("tr") == 3
    assert [t for t in reader.tags if t in ("th", "td")] == ["th", "th", "th", "td", "th", "td"]
    assert [a.get("class") for a in reader.all("tr")] == [None, "", "marked"]
    html = render_page(Page("t", "c", [Section("h", Table(["name"], [["a<b", "1"]]))], {}))
    assert '<th scope="row">a&lt;b</th><td>1</td>' in html
