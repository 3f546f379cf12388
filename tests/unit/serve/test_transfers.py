"""Names of files that the service takes."""

import pytest

from terraseg.errors import ConfigError
from terraseg.serve.transfers import raster_path


@pytest.mark.parametrize("name", ["images/a.tif", "a.TIFF", "masks/a.tif.msk", "a.TIFF.MSK"])
def test_geotiffs_and_their_masks_are_taken(name: str) -> None:
    assert str(raster_path(name)) == name


@pytest.mark.parametrize("name", ["a.vrt", "a.msk", "a.jp2", "a.tif.aux.xml"])
def test_other_files_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not named like a GeoTIFF"):
        raster_path(name)
