# Sourced by tools/serve, tools/test and tools/check: the environment of a build, and steps with times.
# Expects $root, the repository's folder.

# Another clone at another path finds the objects of this one in ccache's cache (~/.cache/ccache).
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1

# A C++ file of this project takes up to 1.5 GB to compile; with less memory than cores, fewer jobs.
build_jobs() {
  local cores fitting
  cores=$(nproc)
  fitting=$(awk '/^MemAvailable/ { print int($2 / 1500000) }' /proc/meminfo)
  if ((fitting < 1)); then fitting=1; fi
  echo $((fitting < cores ? fitting : cores))
}

# step TITLE COMMAND...: says what starts and how long it took; the command's output is shown.
step() {
  local title=$1 started=$SECONDS status=0
  shift
  echo "==> $title"
  "$@" || status=$?
  if ((status == 0)); then
    echo "    $title: done in $((SECONDS - started)) s"
  else
    echo "    $title: FAILED after $((SECONDS - started)) s" >&2
  fi
  return "$status"
}

# configure PRESET: runs CMake; its output is shown only when it fails.
configure() {
  local log status=0
  log=$(mktemp)
  (cd "$root" && cmake --preset "$1") >"$log" 2>&1 || status=$?
  if ((status != 0)); then cat "$log" >&2; fi
  rm -f "$log"
  return "$status"
}

# build PRESET TARGET...: no target means everything.
build() {
  local preset=$1
  shift
  configure "$preset" && ninja -C "$root/build/$preset" -j "$(build_jobs)" "$@"
}
