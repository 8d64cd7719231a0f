"""The templates of the report: every value is escaped once."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from tpdm.evaluation.report.layout import Figure, Section, Table, templates

# Without carriage returns and NUL, which an HTML parser replaces.
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


def parts():
    return templates().get_template("parts.html.j2").module


@given(text, text)
def test_text_and_attributes_survive_escaping(caption, source):
    reader = read(str(parts().figure(Figure(source, caption))).strip("\n"))
    assert reader.tags == ["figure", "img", "figcaption"]
    assert reader.text == caption
    assert reader.attributes == [{}, {"src": source, "alt": caption}, {}]


def test_parts_nest_and_are_escaped_once():
    html = parts().section(Section("<&>", text="<", chart=Figure("x", "&")))
    assert "<h2>&lt;&amp;&gt;</h2>" in html
    assert "<p>&lt;</p>" in html
    assert '<figure><img src="x" alt="&amp;"><figcaption>&amp;</figcaption></figure>' in html


def test_table():
    reader = read(str(parts().table(Table(["name", "n"], [["a<b", "1"], ["c", "2"]], marked={1}))))
    assert reader.tags.count("tr") == 3
    assert reader.text.replace("\n", "") == "namena<b1c2"
    assert [a.get("class") for t, a in zip(reader.tags, reader.attributes, strict=True) if t == "tr"] == [
        None,
        "",
        "marked",
    ]
