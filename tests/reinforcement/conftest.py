from __future__ import annotations

import pytest

from counterpoise.reinforcement import IsolationError, Sandbox


@pytest.fixture(scope="session")
def sandbox():
    """Isolated, with a short time-out. Skipped only where the sandbox itself refuses; that it refuses is tested everywhere."""
    try:
        made = Sandbox(timeout=1.0, memory_mb=512, processes=16)
    except IsolationError as error:
        pytest.skip(f"untrusted programs are not run here: {error}")
    with made:
        yield made
