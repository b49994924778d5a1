"""The devices that `trt-compress package` makes packages for; what they run is said by their target."""

from collections.abc import Mapping
from dataclasses import dataclass

from trt_compress.errors import ConfigError
from trt_compress.export.targets import TARGETS, Target
from trt_compress.suggest import not_known


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageTarget:
    """Where a package is unpacked.

    Attributes:
        name: As given to `--for`.
        target: Name of the target in `export.targets`: versions, SMs and limits stand there.
        machine: As `uname -m` says it.
    """

    name: str
    target: str
    machine: str

    @property
    def facts(self) -> Target:
        """What the device takes."""
        return TARGETS[self.target]

    @property
    def is_jetson(self) -> bool:
        """Whether TensorRT and CUDA come with the device's own software."""
        return self.facts.is_tensorrt


DEVICES: Mapping[str, PackageTarget] = {
    device.name: device
    for device in (
        PackageTarget(name="jetson-orin-jp6", target="jetson-orin-jp6", machine="aarch64"),
        PackageTarget(name="jetson-orin-jp7", target="jetson-orin-jp7", machine="aarch64"),
        PackageTarget(name="jetson-thor", target="jetson-thor", machine="aarch64"),
        PackageTarget(name="linux-x86_64", target="cpu", machine="x86_64"),
    )
}


def get_device(name: str) -> PackageTarget:
    """The device of this name.

    Raises:
        ConfigError: No package is made for it.
    """
    if name in DEVICES:
        return DEVICES[name]
    raise ConfigError(not_known("device", name, DEVICES))
