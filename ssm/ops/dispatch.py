"""Which implementation of an op runs: by name, or the fastest one that can.

Each op keeps a table `{name: Implementation}`. A named implementation runs or says
why it cannot; `None` walks the preferences of the platform and takes the first that
does not refuse, so it never fails for want of a kernel.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pallas_kernels import target

DEVICE_KERNELS = ("pallas_tpu", "mosaic_gpu")
SCAN_PREFERENCE = {
    "cpu": ("loop",),
    "tpu": ("pallas_tpu", "associative"),
    "gpu": ("mosaic_gpu", "associative"),
    "default": ("associative",),
}


def _never(*args: Any, **kwargs: Any) -> None:
    return None


class Implementation(NamedTuple):
    """One way to compute an op.

    `run` and `refuse` take the same arguments; `refuse` returns the reason why `run`
    cannot take them on this machine, or None.
    """

    run: Callable
    refuse: Callable[..., str | None] = _never


def choose(
    op: str,
    name: str | None,
    table: Mapping[str, Implementation],
    preference: Mapping[str, tuple[str, ...]],
    *args: Any,
    **kwargs: Any,
) -> Callable:
    """Returns the `run` of the implementation `name`, or of the best one for None.

    `preference` maps a platform to names, best first; the platform "default" stands
    for those it does not list. Raises ValueError for an unknown name and
    NotImplementedError for a named implementation that cannot run here.
    """
    platform = target.platform()

    def refusal(name: str) -> str | None:
        if name in DEVICE_KERNELS and (axes := target.automatic_axes()):
            return (
                f"XLA does not partition a kernel over the mesh axes {axes}: say with "
                "ops.axis_names which of them shard what, or call the op inside a "
                "shard_map over all of them"
            )
        return table[name].refuse(*args, **kwargs)

    if name is not None:
        if name not in table:
            known = ", ".join(repr(known) for known in table)
            raise ValueError(
                f"{op}: implementation={name!r} is unknown, wanted {known}"
            )
        if (reason := refusal(name)) is not None:
            raise NotImplementedError(
                f"{op}: implementation={name!r} cannot run on {platform!r}: {reason}; "
                "leave implementation=None to take the best that can"
            )
        return table[name].run
    for candidate in preference.get(platform, preference["default"]):
        if refusal(candidate) is None:
            return table[candidate].run
    raise AssertionError(f"{op}: no implementation for {platform!r}")
