"""Tests of the compose files on a real Docker engine, some minutes long, for whom asks for them:

    DOCKER_TESTS=1 .venv/bin/python -m pytest tests/deploy

They need Docker Compose 2.23.1 and either a registry to pull from or the images of tests/deploy/images.sh. Without an
engine they fail: who asked for them wants to know.
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("DOCKER_TESTS") == "1" else ["test_compose.py"]
