from pathlib import Path

import pytest

from terraseg.errors import ConfigError
from terraseg.mapping.inputs.manifest import read_manifest


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.txt", "# of May\na.tif\n\n  /data/b.tif \nhttps://host/c.tif\n"),
        ("m.csv", "date,scene\n2026-05-01,a.tif\n2026-05-02,/data/b.tif\n,https://host/c.tif\n"),
        ("m.JSON", '["a.tif", "/data/b.tif", "https://host/c.tif"]'),
    ],
)
def test_a_manifest_names_scenes_from_its_own_folder(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text("\N{BYTE ORDER MARK}" + text, encoding="utf-8")
    assert read_manifest(tmp_path / name) == [(str(tmp_path / "a.tif"),), ("/data/b.tif",), ("https://host/c.tif",)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.txt", "may.tif; june.tif;/data/july.tif\nalone.tif\n"),
        ("m.csv", "scene,place\nmay.tif;june.tif;/data/july.tif,a\nalone.tif;,b\n"),
        ("m.json", '[["may.tif", "june.tif", "/data/july.tif"], "alone.tif", []]'),
    ],
)
def test_an_entry_may_name_the_dates_of_a_place(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    several = (str(tmp_path / "may.tif"), str(tmp_path / "june.tif"), "/data/july.tif")
    assert read_manifest(tmp_path / name) == [several, (str(tmp_path / "alone.tif"),)]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("m.txt", None, "no manifest"),
        ("m.yaml", "a", r"expected a manifest \.txt, \.csv or \.json"),
        ("m.txt", "# nothing\n", "lists no scene"),
        ("m.txt", "a.tif\n./a.tif\n", r"a\.tif twice"),
        ("m.csv", "file,date\na.tif,1\n", "has columns file, date; expected a column scene"),
        ("m.csv", "", "has columns none"),
        ("m.json", "[", "is not JSON"),
        ("m.json", '{"a": 1}', "is not a list of scenes"),
        ("m.json", "[1]", "is not a list of scenes"),
        ("m.json", "[[1]]", "is not a list of scenes"),
        ("m.json", '[["a.tif", "b.tif"], ["a.tif", "b.tif"]]', r"a\.tif; .*b\.tif twice"),
        ("m.txt", b"\xff\xfe\x00", "is not a text file"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path: Path, name: str, text: str | bytes | None, line: str) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=line) as raised:
        read_manifest(tmp_path / name)
    assert "\n" not in str(raised.value)
