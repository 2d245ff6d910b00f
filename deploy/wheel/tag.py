"""Names the wheel after what is in it: programs for one platform, and Python of any version."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Tag(BuildHookInterface):
    """Called by hatchling."""

    def initialize(self, version: str, build_data: dict) -> None:
        """`deploy/wheel/build` replaces the platform by what auditwheel finds."""
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
