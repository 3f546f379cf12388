"""`terraseg check`: find the faults of a training before it begins, each with its fix."""

from pathlib import Path

from terraseg.core.bands import band
from terraseg.learn.check.config import check_config, losses_of, read_config
from terraseg.learn.check.data import check_data
from terraseg.learn.check.finding import Finding
from terraseg.learn.check.target import check_target, target_of
from terraseg.learn.migrate.convert import StockConfigError, converted
from terraseg.learn.migrate.recognise import is_stock


def check(config: str | Path, *, root: str | Path | None = None, model: bool = True) -> list[Finding]:
    """All faults of an experiment, faults of the data first; of a pretraining, the first fault.

    Args:
        config: its YAML.
        root: dataset to use instead of the config's; a pretraining has none.
        model: also check the model, which imports TerraTorch; the rest needs no torch.

    Raises:
        ConfigError: the config can't be read at all.
        StockConfigError: it is of TerraTorch's own classes.
    """
    values, findings = read_config(config)
    if values["model"].get("method") and not values["model"].get("class_path"):
        from terraseg.learn.pretrain.run import check_pretraining

        return findings + check_pretraining(config)
    if is_stock(values):
        raise StockConfigError(config, converted(values, name="NAME"))
    if root is not None:
        values["data"].setdefault("init_args", {})["root"] = str(root)
    dataset, chips, faults = check_data(values)
    findings += faults + check_config(values, chips=chips)
    if dataset is not None:
        section = values["model"].get("init_args") or {}
        findings += check_target(
            dataset, target=target_of(losses_of(section)), positive=section.get("positive_class", 1)
        )
    if not model:
        return findings
    from terraseg.learn.check.model import check_model

    given = values["data"].get("init_args", {}).get("bands") or (dataset.info.bands if dataset else ())
    named = dataset is not None and not any(fault.key.endswith("init_args.bands") for fault in faults)
    return findings + check_model(
        values,
        bands=[band(str(name)).name for name in given] if named else None,
        classes=list(dataset.info.classes.values()) if dataset else [],
        frames=dataset.info.frames if dataset else 1,
    )
