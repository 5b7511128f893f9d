"""What made a golden file: recorded in each, so that a difference can be traced."""

import importlib.metadata
import platform


def versions(*packages: str) -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}
