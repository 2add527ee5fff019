#!/usr/bin/env bash
# Submits one night to the Ray cluster at RAY_ADDRESS, waits for it, and ends as the job did: 0 promoted or nothing to
# do, 3 the gate kept the champion, 4 drift stopped the run, 5 the champion went back, 1 otherwise. SOURCE and WORKSPACE
# say what, RECIPE which recipe (the champion's, or one that is chosen for the images), PYTHON which one on the nodes has
# the packages (python); arguments are handed on.
set -euo pipefail
: "${RAY_ADDRESS:?is the address of the cluster, http://HEAD:8265}"
: "${SOURCE:?is where the images are}" "${WORKSPACE:?is where the models are}"
cd "$(dirname "$0")/../.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ray job submit --working-dir . -- "${PYTHON:-python}" jobs/retrain.py \
  --source "$SOURCE" --workspace "$WORKSPACE" ${RECIPE:+--recipe "$RECIPE"} "$@" 2>&1 | tee "$log"; then
  exit 0
fi
# `ray job submit` ends with 1 whatever its job ended with, but says what that was.
for status in 3 4 5; do
  grep -q "failed with exit code $status" "$log" && exit "$status"
done
exit 1
