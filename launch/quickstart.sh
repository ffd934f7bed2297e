#!/usr/bin/env bash
# Installs what the quickstart needs (the first time) and runs it; arguments go to launch/quickstart.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup_env.sh
setup_environment quickstart
exec "$PYTHON" launch/quickstart.py "$@"
