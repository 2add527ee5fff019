#!/bin/sh
# Unpacks the pieces beside this file and starts the proof. Arguments are those of jobs/bench_gpu.py.
#   PROOF_DIR: folder to unpack to, default /tmp/gpu-proof. PYTHON: the interpreter with torch, default python3.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${PROOF_DIR:-/tmp/gpu-proof}
python=${PYTHON:-python3}
if [ ! -e "$folder/unpacked" ]; then
    "$python" "$here/unpack.py" "$folder"
    touch "$folder/unpacked"
fi
# libjpeg in `lib` is the decoder's.
export PYTHONPATH="$folder/code:$folder/site" XDG_CACHE_HOME="$folder/cache"
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder/lib"
export RAY_USAGE_STATS_ENABLED=0
data=""
for archive in "$folder/cifar.tar" "$folder/photos.tar"; do
    if [ -e "$archive" ]; then data="$data $archive"; fi
done
# shellcheck disable=SC2086
exec "$python" "$folder/code/jobs/bench_gpu.py" ${data:+--data $data} "$@"
