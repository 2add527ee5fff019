#!/usr/bin/env bash
# Starts a Ray cluster of several real nodes and a real S3 on this machine: up.sh [--nodes 3] [--cpu-only 1]; see --help.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec ${UV_RUN-uv run} python -m infra.local.cluster up "$@"
