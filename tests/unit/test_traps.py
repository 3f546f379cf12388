"""Each row of docs/training.md on what the stock classes do silently names tests that exist."""

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_TASK, _DATA = "unit/test_learn_task.py", "unit/test_learn_datamodule.py"
_CONFIG, _CHECK, _MODEL = "unit/test_check_config.py", "unit/test_check_data.py", "integration/test_check_model.py"
_RUN = "integration/test_learn_terratorch.py"

_TESTS = {
    "`loss: ce` without `ignore_index`": [
        (_TASK, "ignored_pixels_change_no_loss"),
        (_RUN, "another_ignore_index_than_that_of_the_masks_is_refused"),
    ],
    "importing it lowers the precision": [(_TASK, "setup_raises_the_matmul_precision_that_terratorch_lowered")],
    "with `--ckpt_path` the checkpoint": [
        (_TASK, "a_checkpoint_says_what_it_is_and_overrules_nothing"),
        (_RUN, "overrides_win_over_the_checkpoint_and_probabilities_are_no_zeros"),
    ],
    "images and masks pair by sort order": [
        (_DATA, "a_missing_image_is_an_error_and_shifts_nothing"),
        (_DATA, "swapped_masks_are_found"),
        (_CHECK, "files_that_are_missing_foreign_or_broken"),
    ],
    "without a mask folder": [(_DATA, "a_missing_mask_folder_is_an_error")],
    "NaN or undeclared nodata": [
        (_DATA, "chips_that_would_poison_training_are_named"),
        (_DATA, "pixels_without_observation_are_the_mean"),
        (_TASK, "a_loss_that_is_not_a_number_names_the_tiles"),
    ],
    "`predict` and `test` without a checkpoint": [(_RUN, "without_a_checkpoint_nothing_is_tested_or_mapped")],
    "probabilities written as int16": [(_RUN, "overrides_win_over_the_checkpoint_and_probabilities_are_no_zeros")],
    "a checkpoint trained with several losses": [
        (_RUN, "the_bundle_gives_the_logits_of_the_best_checkpoint_through_terratorch_too")
    ],
    "`limit_train_batches: 1`": [
        (_RUN, "one_batch_is_not_all_batches"),
        (_CONFIG, "what_would_silently_go_wrong"),
    ],
    "YAML anchors": [(_RUN, "anchors_in_band_lists_are_parsed"), (_CONFIG, "anchors_are_said_with_their_line")],
    "seven bands into six channels": [(_MODEL, "seven_bands_into_six_channels_are_refused")],
    "a mean for one of six bands": [
        (_DATA, "statistics_of_another_length_are_an_error"),
        (_CHECK, "statistics_that_can_not_be_right"),
    ],
    "without means and stds": [
        (_DATA, "statistics_of_another_length_are_an_error"),
        (_DATA, "batches_hold_the_chips_on_disk_normalised_and_paired"),
    ],
    "`batch_size` above": [
        (_DATA, "more_chips_a_batch_than_there_are_is_an_error"),
        (_CHECK, "keys_that_do_not_fit_the_dataset"),
    ],
    "entries of split files": [(_CHECK, "files_that_are_missing_foreign_or_broken")],
    "a nodata tag of 0 on masks": [(_CHECK, "a_sample_read_finds_chips_that_are_not_what_was_prepared")],
    "nodata pixels of a scene": [
        (_DATA, "prediction_reads_bands_by_name_and_checks_the_unit"),
        ("unit/test_mapping_predict.py", "nodata_goes_through_and_empty_windows_are_not_predicted"),
    ],
    "an unreachable hub": [(_RUN, "hub_stops_and_names_the_way_out")],
    "every fault of a model section": [
        (_TASK, "what_can_not_be_built_is_said_in_one_error"),
        (_RUN, "an_error_of_the_constructor_is_one_line"),
    ],
}


def _rows() -> list[str]:
    page = (_ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.split("| with TerraTorch's own classes | here |")[1].split("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]


def test_each_row_has_its_tests_and_each_entry_its_row() -> None:
    rows = _rows()
    assert len(rows) == len(_TESTS)
    for row, begin in zip(rows, _TESTS, strict=True):
        assert row.startswith(begin)


@pytest.mark.parametrize("row", _TESTS)
def test_the_tests_exist(row: str) -> None:
    for file, name in _TESTS[row]:
        assert re.search(rf"^def test_{name}\(", (_ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)
