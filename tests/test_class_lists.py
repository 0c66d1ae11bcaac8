"""Names of classes, in the forms that training scripts and people keep them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from deploykit.errors import InputError
from deploykit.files import class_lists

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("person", "traffic light", "it's #1")
LIST = json.dumps(NAMES)
FORMS = {
    "lines": "person\ntraffic light\nit's #1\n",
    "lines of Windows, with a mark": "\ufeffperson\r\ntraffic light  \r\n\r\nit's #1\r\n\r\n",
    "a last line that does not end": "person\ntraffic light\nit's #1",
    "numbered lines": "1: traffic light\n0: person\n2: it's #1\n",
    "JSON": LIST,
    "JSON with a mark": "\ufeff" + LIST,
    "JSON of several lines": json.dumps(NAMES, indent=2),
    "JSON from numbers": json.dumps(dict(enumerate(NAMES))),
    "JSON from numbers, the last first": json.dumps({i: NAMES[i] for i in (2, 0, 1)}),
    "JSON from 1": json.dumps({i + 1: name for i, name in enumerate(NAMES)}),
    "JSON to numbers": json.dumps({name: i for i, name in enumerate(NAMES)}),
    "ImageNet's index": json.dumps({i: [f"n{i}", name] for i, name in enumerate(NAMES)}),
    "a configuration of transformers": json.dumps(
        {"id2label": dict(enumerate(NAMES)), "label2id": {}, "model_type": "x"}
    ),
    "COCO's file": json.dumps(
        {
            "images": [],
            "categories": [{"id": 9, "name": NAMES[2]}]
            + [{"id": i + 1, "name": NAMES[i], "supercategory": "x"} for i in (0, 1)],
        }
    ),
    "YAML": "nc: 3\nnames: ['person', traffic light, \"it's #1\"]\ntrain: x\n",
    "YAML of several lines": "names: [ 'person',  # one\n  'traffic light',\n 'it''s #1', ]\n",
    "YAML, a block": "# a set\nnames:\n  - person\n  - 'traffic light'\n  # more\n"
    '  - "it\'s #1"  # last\nval: images/val\n',
    "YAML, a block at the left": "names:\n- person\n- traffic light\n- 'it''s #1'\nnc: 3\n",
    "YAML from numbers": 'names:\n  0: person\n  1: traffic light\n  2: "it\'s #1"\n\nnc: 3\n',
    "YAML from numbers in a row": "names: {0: person, 2: 'it''s #1', 1: traffic light}\n",
    "YAML's list alone": '- person\n- traffic light\n- "it\'s #1"\n',
}


@pytest.mark.parametrize("form", FORMS)
def test_the_names_are_the_same_in_every_form(form: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(FORMS[form].encode())
    assert class_lists.read(tmp_path / "names") == NAMES


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\xff\xfep\0e\0r\0", "no text in UTF-8"),
        ("château\n".encode("latin-1"), "no text in UTF-8"),
        (b"\n\n", "no names"),
        (b"a\0b\n", "no names"),
        (b'["a", "b"', "not JSON"),
        (b'["a", 2]', "no names"),
        (b"[]", "no names"),
        (b'{"0": "a", "2": "b"}', "no names"),
        (b'{"a": 10, "b": 40}', "no names"),
        (b'{"0": "a", "0": "b"}', "twice"),
        (b"names: coco.names\n", "no names"),
        (b"names:\n  0: a\n  2: b\n", "no names"),
        (b"names:\n  first: a\n", "no names"),
        (b"names: [a, b\n", "no names"),
        (b"names: [a, [b]]\n", "no names"),
        (b"names:\nnc: 3\n", "no names"),
        (b"", "empty"),
    ],
)
def test_what_holds_no_plain_names_is_refused(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(InputError, match=what):
        class_lists.read(tmp_path / "names")
