"""Texts are read by name, and a file gets a further name without a gap."""

import pytest
import yaml

from ser_lightning.files import keep_as, read_text, write_text
from ser_lightning.trusted import own_yaml


def test_text_that_is_none_is_refused_with_the_files_name(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"data: \xff")
    with pytest.raises(ValueError, match=r"a\.yaml is no text in UTF-8 \(byte 6\); save it"):
        read_text(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a {b: *a}", "nested too deeply"),
        ("\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{f'*a{n - 1},' * 10}]" for n in range(1, 9))]),
         "holds more than .* values"),
        ("[" * 1200, "nested too deeply"),
    ],
    ids=["cycle", "bomb", "deep"],
)  # fmt: skip
def test_yaml_without_end_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        own_yaml(text)


def test_key_that_stands_twice_is_refused_with_both_lines():
    text = "a: {b: 1}\nc: 2\n\na: {d: 1}\n"
    with pytest.raises(yaml.YAMLError, match=r"a stands in line 1 already; join (.|\n)* line 4"):
        own_yaml(text)
    with pytest.raises(yaml.YAMLError, match=r"b stands in line 1 already"):
        own_yaml("a: {b: 1,\n b: 2}")
    with pytest.raises(yaml.YAMLError, match=r"b stands in line 1 already"):
        own_yaml("a: {b: 1, b: 2}")
    merged = "x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\nz: [{a: 1}, {a: 2}]"
    assert own_yaml(merged)["y"] == {"a": 3, "b": 2}


def test_name_that_is_the_same_file_already_is_left_alone(tmp_path):
    path, other = tmp_path / "last", tmp_path / "previous"
    path.write_text("a")
    for _ in range(2):  # a rename of one of its links to another does nothing
        keep_as(path, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "previous"]


def test_what_cannot_be_written_is_refused_by_the_name_that_was_asked_for(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError) as raised:
        write_text(tmp_path / "page.html", "words")
    assert {raised.value.filename, raised.value.filename2} == {str(tmp_path / "page.html")}
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
