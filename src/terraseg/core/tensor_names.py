"""The tensors of one library's model under the names that another library gives them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from terraseg.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor


def map_by_order(source: "Mapping[str, Tensor]", target: "Mapping[str, Tensor]", *, where: str) -> "dict[str, Tensor]":
    """The tensors of ``source`` under the names of ``target``, position by position.

    Args:
        where: architecture of ``target``, for messages.

    Raises:
        WeightsError: the number of tensors, a shape or a kind (weight, bias, running_mean...) differs. The kind is
            checked because all tensors of a batch norm have the same shape.
    """
    if len(source) != len(target):
        raise WeightsError(f"the weights have {len(source)} tensors", expected=f"{len(target)}, as in {where}")
    for (have, tensor), (want, wanted) in zip(source.items(), target.items(), strict=True):
        if tensor.shape != wanted.shape or have.rsplit(".", 1)[-1] != want.rsplit(".", 1)[-1]:
            raise WeightsError(
                f"the weights have {have} {tuple(tensor.shape)} where {where} has {want} {tuple(wanted.shape)}",
                fix="install the versions in the lock file",
            )
    return {name: tensor.contiguous() for name, tensor in zip(target, source.values(), strict=True)}
