"""Before a training: `check` or `convert` an experiment, `pretrain`, `tune` it, list the backbones (`models`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from terraseg.api.options import Option, StrPath

if TYPE_CHECKING:
    from terraseg.learn.check.finding import Finding
    from terraseg.learn.migrate.convert import Conversion
    from terraseg.learn.models.specs import BackboneSpec


def check(
    config: Annotated[StrPath, Option(metavar="CONFIG")], *, root: StrPath | None = None, model: bool = True
) -> "list[Finding]":
    """Check an experiment or a pretraining before it starts: data, config and model; each fault with its fix.

    Args:
        config: YAML of the experiment, one of configs/.
        root: another dataset than the config's.
        model: check the model too. This imports TerraTorch: about 25 seconds on two cores instead of 3.

    Returns:
        The faults, those of the data first; an empty list for a sound experiment.

    Raises:
        ConfigError: the config can't be read at all, or is written for TerraTorch's own classes (see `convert`).
    """
    from terraseg.learn.check.run import check as run

    return run(config, root=root, model=model)


def convert(config: Annotated[StrPath, Option(metavar="CONFIG")], *, output: StrPath) -> "Conversion":
    """Write a config of TerraTorch's own classes, of any age, as an experiment of terraseg.

    Comments and the order of keys are lost. Every key that changes or has no successor is listed.

    Args:
        config: YAML of the stock `terratorch` command.
        output: YAML of the experiment; its name becomes that of the experiment and of its dataset.

    Returns:
        The experiment, what stands today for each old key, and the command that makes its dataset.

    Raises:
        ConfigError: terraseg can't do what the config does, or it is of another program, or already converted.
        OutputError: the output exists or can't be written.
    """
    from terraseg.learn.migrate.convert import convert as run

    return run(config, output=output)


def pretrain(
    *,
    config: StrPath,
    ckpt_path: StrPath | None = None,
    changes: Annotated[Sequence[str], Option(name="set", metavar="KEY=VALUE", repeated=True)] = (),
) -> Path:
    """Pretrain a backbone on scenes without labels, by hiding parts of them (`ckpt_path` resumes).

    Args:
        config: YAML of the pretraining, such as configs/pretrain_mae.yaml.
        ckpt_path: checkpoint to resume from; the result is that of an unbroken run.
        changes: a value that replaces one of the config, such as trainer.max_steps=100; may be repeated.

    Returns:
        encoder.safetensors, to be given to an experiment as ``model.init_args.weights``.

    Raises:
        ConfigError: the config is missing or wrong, or scenes, chips and model don't fit together.
        SceneError: scenes are missing, lack bands, or have no valid pixel.
        CheckpointError: the checkpoint is missing, or it is of another pretraining.
    """
    from terraseg.learn.pretrain.run import pretrain as run

    return run(config, ckpt_path=ckpt_path, changes=changes)


def tune(
    config: Annotated[StrPath, Option(metavar="CONFIG")],
    *,
    search: StrPath = "configs/tune.yaml",
    root: StrPath | None = None,
    output: StrPath | None = None,
) -> Path:
    """Search hyperparameters with short trainings, scored on validation; run it again to continue.

    Args:
        config: YAML of the experiment, one of configs/.
        search: budget and search space.
        root: another dataset than the config's.
        output: folder of the study; by default outputs/<experiment>/tune.

    Returns:
        best.yaml, to be given to ``terratorch fit`` as a second ``--config``.

    Raises:
        ConfigError: a key that the experiment lacks, or a study of another experiment, space or dataset.
        TrainingError: no trial finished.
        OutputError: another run holds the folder.
    """
    from terraseg.learn.tune.search import tune as run

    return run(config, search=search, root=root, output=output)


def models() -> "dict[str, BackboneSpec]":
    """List the backbones: bands, size, licence, weights, paper. Those marked * may not be used commercially.

    Returns:
        Each backbone's description by its name in TerraTorch.
    """
    from terraseg.learn.models.specs import SPECS

    return dict(SPECS)
