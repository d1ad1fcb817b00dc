#!/bin/bash
# All that wants a GPU, in parts of at most ten minutes: `tests/benchmarks/gpu.sh tests`, `benchmarks`, `notebooks`, or all.
# PYTHON names the interpreter (default .venv/bin/python), OUT where logs and JSON go (default runs/gpu), SMOKE=1 tries the
# script on a machine without a GPU. Each part goes on when one of its steps fails, and tells which did.
set -u
cd "$(dirname "$0")/../.." || exit
python=${PYTHON:-.venv/bin/python} out=$(realpath -m "${OUT:-runs/gpu}") failed=
mkdir -p "$out"
step() { # name, seconds at most, command
  local name=$1 limit=$2 begin=$SECONDS; shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || failed+=" $name"
  echo "$name: $((SECONDS - begin)) s, $(tail -1 "$out/$name.log" | cut -c1-150)"
}
test $# -gt 0 || set -- tests benchmarks notebooks
for part; do
  case $part in
  tests) # the same that run on the simulated device
    step tests 300 env OMP_NUM_THREADS=1 "$python" -m pytest -q -p no:cacheprovider -k "$(test -z "${SMOKE:-}" && echo cuda || echo strict)" tests/on_accelerator.py ;;
  benchmarks)
    step benchmarks 580 "$python" tests/benchmarks/gpu.py ${SMOKE:+--smoke} --out "$out/gpu.json" ;;
  notebooks) # by papermill, each with its own checks; side by side, because none of them keeps a GPU busy
    for n in 01 02 03 04 05 06; do
      (failed=; step "notebook-$n" 580 env OMP_NUM_THREADS=1 LGI_RUNS="$out/runs" "$python" notebooks/reproduce.py \
        --only $n --run "gpu-$n" ${SMOKE:+--params smoke}; exit ${failed:+1}) &
    done
    for job in $(jobs -p); do wait "$job" || failed+=" $part"; done ;;
  *) echo "gpu.sh: tests, benchmarks or notebooks, not '$part'" >&2; exit 2 ;;
  esac
done
test -z "$failed" || { echo "failed:$failed (logs in $out)" >&2; exit 1; }
