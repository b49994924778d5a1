#!/bin/sh
# Build on the device what this package holds. Everything stays in this folder.
#   ./build.sh [--wheels DIR]
# --wheels DIR takes Python's packages from a folder, for a device without a network. On another device of its kind
# `python3 -m pip download -r requirements.txt -d DIR` fills it.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd -P)

fail()
{
    printf 'build.sh: %s\n' "$*" >&2
    exit 2
}

need()
{
    command -v "$1" > /dev/null 2>&1 || fail "'$1' is not on the path; $2."
}

wheels=""
while [ $# -gt 0 ]; do
    case "$1" in
        --wheels)
            [ $# -ge 2 ] || fail "--wheels lacks its folder; give the folder of the wheels."
            [ -d "$2" ] || fail "--wheels $2 is no folder; give the folder of the wheels."
            wheels=$(cd -- "$2" && pwd -P)
            shift 2
            ;;
        *) fail "'$1' is not known; ./build.sh takes --wheels DIR." ;;
    esac
done

case "$here" in
    *[!A-Za-z0-9_./+-]*) fail "'$here' has characters that a systemd unit does not take; move this folder to /opt." ;;
esac
found="$(uname -s) $(uname -m)"
[ "$found" = "Linux @MACHINE@" ] || fail "this package is for Linux @MACHINE@, and this is $found; make one for it."
PATH=$PATH:/usr/local/cuda/bin # where JetPack has nvcc
need python3 "apt install python3 python3-venv"
need cmake "apt install cmake"
need c++ "apt install g++"
if [ -n "@SMS@" ]; then
    need nvcc "it comes with JetPack: apt install nvidia-jetpack"
fi

cd -- "$here"
sum=$(sha256sum source.tar.gz)
if [ "$(cat build/unpacked 2> /dev/null)" != "$sum" ]; then # also where a newer package was copied over an old one
    rm -rf source headers build
    tar xzmf source.tar.gz || fail "source.tar.gz cannot be unpacked; copy the package again."
    mkdir build
    printf '%s\n' "$sum" > build/unpacked
fi

echo "1/@STEPS@ Python's packages"
if [ ! -x "$here/env/bin/python" ]; then
    python3 -m venv @VENV_OPTIONS@ "$here/env" || fail "python3 makes no environment; apt install python3-venv."
fi
"$here/env/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check \
    ${wheels:+--no-index --find-links "$wheels"} -r "$here/requirements.txt" \
    || fail "Python's packages cannot be installed; connect the device to a network, or give --wheels DIR."

echo "2/@STEPS@ the C++ runtime"
cmake -S "$here/source/trt_compress/runtime/cpp" -B "$here/build/runtime" -DCMAKE_BUILD_TYPE=Release \
    -DTRTC_ONNXRUNTIME="$here/headers/onnxruntime" -DTRTC_JSON="$here/headers/json" \
    -DCMAKE_INSTALL_PREFIX="$here/install" -DCMAKE_INSTALL_LIBDIR=lib > /dev/null
cmake --build "$here/build/runtime" --parallel "$(nproc)"
cmake --install "$here/build/runtime" > /dev/null
library=$("$here/env/bin/python" -c 'import importlib.util, pathlib
folder = pathlib.Path(importlib.util.find_spec("onnxruntime").origin).parent / "capi"
print(*sorted(folder.glob("libonnxruntime.so*"))[-1:])')
[ -n "$library" ] || fail "Python's onnxruntime has no libonnxruntime.so; install another version of it in 'env'."
ln -sfn "$library" "$here/install/lib/libonnxruntime.so.1"

echo "3/@STEPS@ the native operators"
"$here/trt-compress" plugins build --cuda "@CUDA@" --onnxruntime "$here/headers/onnxruntime"

if [ -n "@ENGINE@" ] && [ ! -d "$here/bundle/engines/@ENGINE@" ]; then
    echo "4/4 the engine"
    "$here/trt-compress" build "$here/bundle" --target "@ENGINE@"
fi

sed -e "s|@HERE@|$here|" -e "s|@USER@|$(id -un)|" "$here/trt-compress.service.in" > "$here/build/trt-compress.service"
echo "Built. ./run.sh runs the bundle; ./trt-compress doctor says what can be done here."
