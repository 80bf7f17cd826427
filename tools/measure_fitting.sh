#!/usr/bin/env bash
# Measures everything that results/ says of fitting: people, the shared decoder, validation fits, the study, benchmarks.
#   tools/measure_fitting.sh OUT        (preset small, H200: nine minutes, and two more a setting of the study; GPUs share them)
# PRESET, TRAIN, VALIDATION and STUDY (subjects), SETTINGS (of the study), GPUS (default: all) and PYTHON change what runs;
# a run that was cut goes on.
set -uo pipefail
out=$1
preset=${PRESET:-small} train=${TRAIN:-256} validation=${VALIDATION:-64} study=${STUDY:-64}
python=${PYTHON:-python3} gpus=${GPUS:-$(nvidia-smi -L 2>/dev/null | wc -l)}
runs=$(realpath -m "${RUNS:-runs/fitting}")
mkdir -p "$out" "$runs"
minirodin() { "$python" -m minirodin "$@"; }
say() { echo "[$(($(date +%s) - start)) s] $*"; }
start=$(date +%s)

size=$("$python" -c "from minirodin.config import preset; d = preset('$preset').data; print(d.views, d.size)")
minirodin avatars --count "$train" --views ${size% *} --size ${size#* } --seed 0 --out "$runs/train" >"$out/people.log" 2>&1
say "$train people"
began=$(date +%s.%N)
taskset -c 0-15 "$python" -m minirodin avatars --count "$validation" --views ${size% *} --size ${size#* } --seed 1000000 \
  --out "$runs/validation" >>"$out/people.log" 2>&1
"$python" - "$out/people.json" "$validation" "$began" <<'P'
import sys, time
from minirodin.evaluation import provenance, write_json
count, seconds = int(sys.argv[2]), time.time() - float(sys.argv[3])
write_json({**provenance(), "people": count, "cores": 16, "seconds": seconds, "people_per_second": count / seconds}, sys.argv[1])
P
say "$validation validation people"
for kind in train validation; do  # the study takes the first few
  mkdir -p "$runs/study/$kind"
  count=$study; [ $kind = train ] || count=$((study / 2))
  for folder in $(ls -d "$runs/$kind"/*/ | head -n "$count"); do ln -sfn "${folder%/}" "$runs/study/$kind/"; done
done

chain() {
  minirodin fit "$runs/train" --preset "$preset" --out "$runs/shared" &&
    cp "$runs/shared/decoder.safetensors" "$out/" && say "shared decoder" &&
    began=$(date +%s.%N) &&
    minirodin fit "$runs/validation" --preset "$preset" --decoder "$runs/shared/decoder.safetensors" --out "$runs/fitted" &&
    say "validation fitted: $(echo "$(date +%s.%N) - $began" | bc 2>/dev/null) s with start-up, images and compilation" &&
    minirodin evaluate "$runs/fitted" "$runs/validation" --out "$out/fitting.json" >"$out/fitting.log" &&
    "$python" tools/fitting_pictures.py "$runs/fitted" "$runs/validation" --out "$out" && say "evaluated"
}
study() {
  for name in "$@"; do
    [ ! -f "$out/study-$name.json" ] || continue
    "$python" tools/fitting_study.py "$runs/study/train" "$runs/study/validation" --preset-name "$preset" \
      --out "$runs/study/fits" --only "$name" ${STUDY_FLAGS:-} && cp "$runs/study/fits/$name.json" "$out/study-$name.json"
    say "study: $name"
  done
}
bench() {
  until [ -f "$runs/study/fits/chosen.json" ]; do sleep 1; done
  minirodin bench fit "$runs/validation" --preset "$preset" --decoder "$runs/study/fits/chosen/shared/decoder.safetensors" \
    --out "$out/bench_fit.json" >"$out/bench.log"
  avatar=$(ls "$runs/study/validation" | head -n 1)
  minirodin bench render "$runs/study/fits/chosen/fitted/$avatar" --out "$out/bench_render.json" >>"$out/bench.log"
  say "benchmarks"
}

export CUDA_VISIBLE_DEVICES=0 MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0}
settings=(${SETTINGS:-chosen one-size-plain one-size smoothness-d100 smoothness-x4 channels-8 smoothness-d10 channels-32 noise-none noise-x3 density-d2})
if [ "$gpus" -gt 1 ]; then  # the chain has a GPU for itself, the settings share the others
  chain &
  for gpu in $(seq 1 $((gpus - 1))); do
    mine=()
    for i in "${!settings[@]}"; do [ $((i % (gpus - 1) + 1)) = "$gpu" ] && mine+=("${settings[$i]}"); done
    (CUDA_VISIBLE_DEVICES=$gpu; study "${mine[@]}"; [ "$gpu" != 1 ] || bench) &
  done
  wait
else
  chain
  study "${settings[@]}"
  bench
fi
"$python" - "$out" <<'P'
import json, sys
from pathlib import Path
from minirodin.evaluation import write_json
out = Path(sys.argv[1])
rows = [json.loads(p.read_text()) for p in sorted(out.glob("study-*.json"))]
shared = {k: rows[0][k] for k in ("date", "commit", "device", "shared_steps", "steps")}
write_json({**shared, "settings": [{k: v for k, v in r.items() if k not in shared} for r in rows]}, out / "fitting_study.json")
P
say "done"
