"""The command line as users type it."""

from pathlib import Path

import pytest

from terraseg.cli import VERBS, build_parser, main, parse_arguments


def test_several_values_switches_and_underscores() -> None:
    options = parse_arguments(
        ["predict", "--config", "c.yaml", "--ckpt_path=a_b.ckpt", "--input", "a_1.tif", "b.tif", "--tta"]
    )
    assert (options.verb, options.config, options.ckpt_path) == ("predict", Path("c.yaml"), Path("a_b.ckpt"))
    assert (options.input, options.tta) == ([Path("a_1.tif"), Path("b.tif")], True)
    assert parse_arguments(["predict", "--bundle", "b", "--predict_data_root", "x"]).input == [Path("x")]


def test_the_sample_takes_its_own_options() -> None:
    options = parse_arguments(["data", "download", "--sample", "--output", "raw", "--labels-output", "osm"])
    assert (options.function.__name__, options.output) == ("download_sample", Path("raw"))
    assert parse_arguments(["data", "download", "--aoi", "a.geojson"]).function.__name__ == "download"


@pytest.mark.parametrize(
    "line",
    [
        "predict", "predict --bundle a --config b", "predict --bundle a --workers 2 --scheduler tcp://a:1",
        "predict --bundle a --input b --manifest c", "data download", "data download --sample --aoi a",
        "evaluate --bundle a --index-baseline", "check", "data", "nothing",
    ],
)  # fmt: skip
def test_what_excludes_each_other_or_is_missing(line: str) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(line.split())
    assert end.value.code == 2


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*verb.split(), "--help"])
    assert end.value.code == 0
    assert f"usage: terraseg {verb}" in capsys.readouterr().out


def test_completion_knows_every_verb_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "bash"])
    assert end.value.code == 0
    script = capsys.readouterr().out
    assert all(word in script for verb in VERBS for word in verb.split())
    assert "--predict-data-root" in script


def test_an_unknown_shell_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "dos"])
    assert end.value.code == 2
    assert "bash" in capsys.readouterr().err


def test_all_verbs_can_be_built_at_once() -> None:
    assert build_parser().parse_args(["models"]).verb == "models"
