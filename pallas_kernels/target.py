"""The device that a program is compiled for.

It is that of the ambient mesh (`with jax.set_mesh(mesh):`), which may be one that is
only described, as in ahead-of-time compilation; without a mesh it is the default
backend of this process.
"""

import jax


def platform() -> str:
    """The platform that is compiled for: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def automatic_axes() -> tuple[str, ...]:
    """The axes of the ambient mesh over which XLA partitions, as it cannot a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return ()
    return tuple(name for name in mesh.axis_names if name not in mesh.manual_axes)


def device_kind() -> str:
    """The kind of device that is compiled for, such as "TPU v5 lite"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind
