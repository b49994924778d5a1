#!/bin/sh
# Run the bundle: @WHAT@.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd -P)
[ -e "$here/build/trt-compress.service" ] || {
    echo "run.sh: nothing is built here yet; run ./build.sh." >&2
    exit 2
}
@COMMAND@
