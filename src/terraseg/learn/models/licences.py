"""Licences of published weights."""

from terraseg.learn.models.specs import SPECS

_FAMILIES = {"prithvi_eo_": "Apache-2.0", "terramind_v": "Apache-2.0"}
"""Further models of two publishers, by the beginning of their names."""


def licence_of(backbone: str) -> str | None:
    """SPDX name of the licence of a backbone's published weights; None if unknown."""
    if backbone in SPECS:
        return SPECS[backbone].licence
    if family := next((licence for start, licence in _FAMILIES.items() if backbone.startswith(start)), None):
        return family
    import timm  # imports torch

    config = timm.get_pretrained_cfg(backbone.removeprefix("timm_"), allow_unregistered=True)
    return str(config.license).upper().replace("APACHE", "Apache") if config and config.license else None
