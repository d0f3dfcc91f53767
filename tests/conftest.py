from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

try:
    import hypothesis
except ModuleNotFoundError:  # tests/devices has to run where there is a GPU and little else installed
    pass
else:
    # The same examples in every run of CI, so that it fails for what was changed; new ones are searched for at every desk.
    hypothesis.settings.register_profile("ci", derandomize=True)
    if os.environ.get("CI"):
        hypothesis.settings.load_profile("ci")


# What a shell starts in the background ignores Ctrl-C, and so does all that it starts; tests of interruption need it as in a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets, ``$COUNTERPOISE_DATA``; tests that need it are skipped when there is none."""
    folder = os.environ.get("COUNTERPOISE_DATA")
    if not folder:
        pytest.skip("needs real data sets: set COUNTERPOISE_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.fail(f"COUNTERPOISE_DATA is {folder!r}, which is not a folder")
    return Path(folder)
