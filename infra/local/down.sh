#!/usr/bin/env bash
# Ends what up.sh has started, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec ${UV_RUN-uv run} python -m infra.local.cluster down "$@"
