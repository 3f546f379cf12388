"""results/comparison*.csv: several comparisons in one file, and nothing is lost on disk."""

from pathlib import Path

import pandas as pd
import pytest

from helpers.comparisons import make_comparison
from terraseg.contracts.comparison import FILES, check_tables, find_comparison, read_tables, write_tables
from terraseg.errors import DatasetError

_SCORES = {"base": (0.4, 0.5, 0.6), "none": (0.45, 0.52, 0.62)}


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = make_comparison(_SCORES, leave_out=1)
    write_tables(tmp_path, written)
    (read,) = read_tables(tmp_path / "comparison.csv")
    for table in FILES:
        pd.testing.assert_frame_equal(getattr(read, table), getattr(written, table), check_dtype=False, rtol=1e-4)
    assert (read.name, read.baseline, read.unfinished, read.words) == ("made", "base", 1, written.words)


def test_a_comparison_replaces_its_own_rows_alone(tmp_path: Path) -> None:
    scene, city = make_comparison(_SCORES, name="scene"), make_comparison(_SCORES, name="city", leave_out=1)
    for each in (scene, city):
        write_tables(tmp_path, each)
    before = [path.read_bytes() for path in sorted(tmp_path.glob("*.csv"))]
    write_tables(tmp_path, city)
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.csv"))] == before
    write_tables(tmp_path, make_comparison({**_SCORES, "third": (0.1, 0.2, 0.3)}, name="scene"))
    by_name = {each.name: each for each in read_tables(tmp_path / "comparison.csv")}
    assert len(by_name["scene"].cells) == 27
    assert (len(by_name["city"].cells), by_name["city"].unfinished) == (17, 1)
    assert len(by_name["city"].pairs) == len(city.pairs) == 2


def test_tables_with_pooled_seeds_of_an_older_version_say_to_compare_again(tmp_path: Path) -> None:
    write_tables(tmp_path, make_comparison(_SCORES))
    rows = pd.read_csv(tmp_path / "comparison_by_fraction.csv").drop(columns=["train_chips", "val_chips", "no_p"])
    rows.to_csv(tmp_path / "comparison_by_fraction.csv", index=False)
    with pytest.raises(DatasetError, match="lacks the columns train_chips, val_chips, no_p.*compare again"):
        read_tables(tmp_path / "comparison.csv")


@pytest.mark.parametrize("name", FILES.values())
def test_a_table_of_another_version_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    write_tables(tmp_path, make_comparison(_SCORES))
    (tmp_path / name).write_text("experiment,fraction\nbase,1\n")
    with pytest.raises(DatasetError, match=rf"{name} lacks the columns comparison, .*another version"):
        check_tables(tmp_path)
    with pytest.raises(DatasetError, match="delete it and compare again; finished cells are kept"):
        read_tables(tmp_path / "comparison.csv")


def test_a_missing_table_raises_an_error(tmp_path: Path) -> None:
    check_tables(tmp_path)
    with pytest.raises(DatasetError, match=r"no comparison at .*comparison.csv"):
        read_tables(tmp_path / "comparison.csv")


def test_a_comparison_is_looked_for_in_the_results_and_above_them(tmp_path: Path) -> None:
    demo = tmp_path / "results" / "demo"
    demo.mkdir(parents=True)
    assert find_comparison(demo) is None
    for folder in (demo.parent, demo):
        write_tables(folder, make_comparison(_SCORES))
        assert find_comparison(demo) == folder / "comparison.csv"
