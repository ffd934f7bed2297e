#!/usr/bin/env bash
# Installs what the tests need (the first time), checks the style and runs the tests.
#
#   bash launch/test.sh                        everything but the slow tests, on two processes
#   bash launch/test.sh -m slow                the slow ones
#   bash launch/test.sh tests/data -k zip      arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup_env.sh
setup_environment dev,quickstart,tensorboard,video

style=0
"$PYTHON" -m ruff check . || style=$?
# One file's tests stay in one process: they share compiled programs.
"$PYTHON" -m pytest -n "${GANTRANSFER_TEST_PROCESSES:-2}" --dist loadfile "$@"
exit "$style"
