"""The command line: ``counterpoise study``, ``diagnose``, ``predict``, ``report``, ``replicate``, ``papers`` and ``scaling``.

:func:`main` is the entry point. It is a thin layer: options are checked and turned into the arguments of :func:`counterpoise.study`,
and everything that is heavy is imported only once a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

from ._app import main

__all__ = ["main"]
