"""The content of a report page, parsed without a browser."""

import base64
import json
from html.parser import HTMLParser

import numpy as np


class Page(HTMLParser):
    """The parsed page: its document, its arrays, all text and all elements."""

    def __init__(self, html):
        super().__init__()
        self.arrays, self.text, self.tags, self.rows = {}, [], [], []
        self._script, self._in_cell = None, False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True
        self._script = dict(attributes) if tag == "script" else None

    def handle_endtag(self, tag):
        self._script = None
        self._in_cell = self._in_cell and tag not in ("th", "td")

    def handle_data(self, data):
        if self._script is None:
            self.text.append(data)
            if self._in_cell:
                self.rows[-1][-1] += data
        elif self._script.get("id") == "document":
            self.document = json.loads(data)
        elif "data-array" in self._script:
            dtype = f"<{self._script['data-dtype']}"
            self.arrays[self._script["data-array"]] = np.frombuffer(base64.b64decode(data), dtype)
