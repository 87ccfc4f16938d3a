"""A page of results read back without a browser, by the standard library's parser."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page; fails on tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if any(tag in self.open for tag in ("td", "th")) and self.cells:
            self.cells[-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of this kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        """Everything that is text."""
        return " ".join(self.texts)


def read(path: Path) -> Page:
    """The page in a file."""
    return Page(path.read_text("utf-8"))


def assert_self_contained(page: Page) -> None:
    """One script, one style, nothing fetched, nothing run from attributes; every figure has its words."""
    assert len(page.of("script")) == len(page.of("style")) == 1
    assert not set(dict(page.elements)) & {"iframe", "object", "embed", "form", "base", "img", "video"}
    policy = [m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert [text.split(";")[0] for text in policy if text] == ["default-src 'none'"]
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "action", "srcset"):
                assert value is not None
                assert value.startswith(("#", "data:"))
            assert "url(http" not in (value or "")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for a in page.of("a") if a["href"]]
    assert set(targets) <= set(ids)
    assert len(page.of("figure")) == len(page.of("svg")) == len(page.of("figcaption"))
    said = [a["aria-label"] for a in page.of("div") if a.get("role") == "img"]
    assert len(said) == len(page.of("figure"))
    assert all(text and len(text) > 30 for text in said)
    for table in page.of("table"):
        assert table["aria-describedby"] in ids
    assert all("scope" in head for head in page.of("th"))
