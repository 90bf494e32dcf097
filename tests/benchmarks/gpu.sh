#!/usr/bin/env bash
# What to run first where a GPU is at hand: is the engine exact on it, then how fast beside the others,
# where the time of a step goes and how long the device waits; vLLM last, if it is installed. Eight
# minutes on a bare machine, what does not fit is cut off; needs torch, transformers, pyro-ppl,
# greenlet, pytest, pytest-xdist, hypothesis.
#
#     bash tests/benchmarks/gpu.sh [FOLDER FOR LOGS]
#
# Without a GPU it runs the same tests and a trial of the benchmark on a CPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
logs=${1:-$(mktemp -d)}
python=${PYTHON:-python3}
device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PPL_TEST_DEVICE=$device PYTHONUNBUFFERED=1
[ "$device" = cuda ] && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader

exact='equal_a_plain or matter or once or interleaving or split_by or alone or teacher_forcing
 or chunks or hidden_states or last_place or gemma2 or half_way or replayed or beginning or beside
 or within_the_budget or compressed_model or both_kept or anywhere or no_more_than or hold_it_once
 or no_such_weights or step_by_step'
tests=(tests/test_{engine,engine_work,graphs,replays,compiled,attention,kv,trunk,quantised}.py)
# One thread a worker: with all cores each, they wait for one another many times as long.
OMP_NUM_THREADS=1 timeout "${EXACT_SECONDS:-200}" "$python" -m pytest "${tests[@]}" -q -n "${WORKERS:-8}" \
  -p no:cacheprovider -p no:benchmark -k "$(echo $exact) and not compiled" 2>&1 | tee "$logs/exact.txt" | tail -25
result=${PIPESTATUS[0]}

if [ "$device" = cuda ]; then
  shape=(--shape qwen2.5-1.5b --context 512 --new-tokens 64 --rows 1 8 64 --repeats 2 --profile)
else
  shape=(--shape tiny --context 64 --new-tokens 16 --repeats 1 --rows 1 8 --profile)
fi
timeout "${SPEED_SECONDS:-265}" "$python" tests/benchmarks/gpu.py "${shape[@]}" ${GPU_OPTIONS:-} 2>&1 \
  | tee "$logs/speed.txt"
exit "$result"
