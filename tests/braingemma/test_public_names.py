"""What users import from `braingemma`: each name is there, and `import braingemma` alone loads no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import braingemma


@pytest.mark.parametrize("name", braingemma.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(braingemma, name) is not None


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = braingemma.nothing


def test_the_package_alone_loads_no_torch() -> None:
    code = "import sys, braingemma; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
