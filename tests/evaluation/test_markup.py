from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from tpdm.evaluation.report.html import Markup, element, join, table

# A parser turns carriage returns and NUL into something else, which is not our business here.
text = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=30)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


def read(markup):
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


@given(text, text)
def test_text_and_attributes_come_back_as_they_were(inside, title):
    reader = read(element("p", inside, title=title))
    assert reader.tags == ["p"]
    assert reader.text == inside
    assert reader.attributes == [{"title": title}]


def test_markup_nests_and_is_escaped_once():
    assert join(element("b", "<&>"), "<", None) == "<b>&lt;&amp;&gt;</b>&lt;"
    assert element("div", element("img", src="x", class_="y")) == '<div><img src="x" class="y"></div>'
    assert isinstance(join("a"), Markup)


def test_table():
    reader = read(table(["name", "n"], [["a<b", "1"], ["c", "2"]], marked={1}))
    assert reader.tags.count("tr") == 3
    assert reader.text == "namena<b1c2"
    assert [a.get("class") for t, a in zip(reader.tags, reader.attributes, strict=True) if t == "tr"] == [
        None,
        "",
        "marked",
    ]
