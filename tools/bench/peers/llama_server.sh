#!/usr/bin/env bash
# Builds llama.cpp's llama-server, the peer that tools/bench measures Penstock against, for the CPU of
# this machine. The source is the PyPI sdist of llama-cpp-python, pinned by version and hash; nothing
# else is downloaded. Does nothing when the same build is already there.
#
#   tools/bench/peers/llama_server.sh          progress on stderr, the binary's path on stdout
#
# PENSTOCK_CACHE  where to build  (default ~/.cache/penstock)
# JOBS            compile jobs    (default: all cores)
# PYTHON          python with pip (default /usr/bin/python3)
set -euo pipefail

readonly version=0.3.36
readonly sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
readonly python=${PYTHON:-/usr/bin/python3}
readonly jobs=${JOBS:-$(nproc)}

# No curl, OpenSSL or web page: the benchmark speaks plain HTTP on the loopback, and the build must not
# download anything.
readonly flags=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
  -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_CCACHE=ON
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF)

# GGML_NATIVE compiles for this very CPU, so the build is keyed by it, and by compiler and flags.
readonly key=$({ grep -m1 '^model name' /proc/cpuinfo; grep -m1 '^flags' /proc/cpuinfo
                 c++ --version | head -1; echo "${flags[@]}"; } | sha256sum | cut -c1-12)
readonly root=${PENSTOCK_CACHE:-$HOME/.cache/penstock}/peers
readonly dir=$root/llama-cpp-python-$version-$key
readonly binary=$dir/build/bin/llama-server

say() { echo "llama_server.sh: $*" >&2; }

if [[ -f $dir/done && -x $binary ]]; then
  say "already built"
  echo "$binary"
  exit 0
fi

mkdir -p "$dir"
readonly sdist=$root/llama_cpp_python-$version.tar.gz
if ! echo "$sha256  $sdist" | sha256sum --check --status 2>/dev/null; then
  say "fetching llama-cpp-python $version (77 MB) with pip"
  echo "llama-cpp-python==$version --hash=sha256:$sha256" >"$dir/requirements.txt"
  "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --require-hashes \
    --dest "$root" --requirement "$dir/requirements.txt" >&2
  echo "$sha256  $sdist" | sha256sum --check --quiet
fi

say "unpacking vendor/llama.cpp"
tar -xzf "$sdist" -C "$dir" --strip-components=1 "llama_cpp_python-$version/vendor/llama.cpp"

say "building llama-server (Release, native, OpenMP) with $jobs jobs; takes some minutes"
nice cmake -G Ninja -S "$dir/vendor/llama.cpp" -B "$dir/build" "${flags[@]}" \
  >"$dir/cmake.log" 2>&1 || { tail -20 "$dir/cmake.log" >&2; say "cmake failed: $dir/cmake.log"; exit 1; }
nice ninja -C "$dir/build" -j "$jobs" llama-server \
  >"$dir/ninja.log" 2>&1 || { tail -20 "$dir/ninja.log" >&2; say "build failed: $dir/ninja.log"; exit 1; }
"$binary" --version >&2
touch "$dir/done"
say "built"
echo "$binary"
