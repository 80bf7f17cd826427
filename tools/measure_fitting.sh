#!/usr/bin/env bash
# Measures everything that results/ says of fitting, in stages that can run one at a time:
#   tools/measure_fitting.sh OUT [people] [fit] [bench] [study] [private] [collect]     (default: all; preset small, H200: eleven minutes and two a setting)
# people: their rate; fit: shared decoder, validation fits, evaluation, pictures; bench: rates of fitting and rendering;
# study: the settings of tools/fitting_study.py, JOBS at a time; private: those with a decoder a person, on data_samples/people;
# collect: one file of each.
# PRESET, TRAIN, VALIDATION, STUDY (subjects), SETTINGS, JOBS and PYTHON change what runs; a run that was cut goes on.
set -uo pipefail
out=$1; shift
stages=${*:-people fit bench study private collect}
preset=${PRESET:-small} train=${TRAIN:-256} validation=${VALIDATION:-64} study=${STUDY:-32} jobs=${JOBS:-1}
settings=(${SETTINGS:-chosen one-size-plain one-size-from-noise one-size smoothness-d100 smoothness-d10 smoothness-x4 channels-8 noise-none})
python=${PYTHON:-python3} runs=$(realpath -m "${RUNS:-runs/fitting}")
export MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0}
mkdir -p "$out" "$runs"
minirodin() { "$python" -m minirodin "$@"; }
say() { echo "[$SECONDS s] $*"; }

people() {
  local size; size=$("$python" -c "from minirodin.config import preset; d = preset('$preset').data; print('--views', d.views, '--size', d.size)")
  local began; began=$(date +%s.%N)
  taskset -c 0-15 "$python" -m minirodin avatars --count "$train" $size --seed 0 --out "$runs/train" || return
  "$python" - "$out/people.json" "$train" "$began" <<'P'
import sys, time
from minirodin.evaluation import provenance, write_json
count, seconds = int(sys.argv[2]), time.time() - float(sys.argv[3])
write_json({**provenance(), "people": count, "cores": 16, "seconds": seconds, "people_per_second": count / seconds}, sys.argv[1])
P
  minirodin avatars --count "$validation" $size --seed 1000000 --out "$runs/validation" || return
  for kind in train validation; do  # the study takes the first few
    mkdir -p "$runs/study/$kind"
    local count=$study; [ $kind = train ] || count=$((study / 2))
    for folder in $(ls -d "$runs/$kind"/*/ | head -n "$count"); do ln -sfn "${folder%/}" "$runs/study/$kind/"; done
  done
}
fit() {
  minirodin fit "$runs/train" --preset "$preset" --out "$runs/shared" && say "shared decoder" || return
  cp "$runs/shared/decoder.safetensors" "$out/"
  minirodin fit "$runs/validation" --preset "$preset" --decoder "$out/decoder.safetensors" --out "$runs/fitted" && say "validation" || return
  minirodin evaluate "$runs/fitted" "$runs/validation" --out "$out/fitting.json" &&
    "$python" tools/fitting_pictures.py "$runs/fitted" "$runs/validation" --out "$out"
}
bench() {
  minirodin bench fit "$runs/validation" --preset "$preset" --decoder "$out/decoder.safetensors" --out "$out/bench_fit.json" &&
    minirodin bench render "$runs/fitted/$(ls "$runs/validation" | head -n 1)" --out "$out/bench_render.json"
}
study() {
  printf '%s\n' "${settings[@]}" | xargs -P "$jobs" -I{} sh -c "[ -f '$out/study-{}.json' ] || { '$python' tools/fitting_study.py \
    '$runs/study/train' '$runs/study/validation' --preset-name '$preset' --out '$runs/study/fits' --only '{}' ${STUDY_FLAGS:-} &&
    cp '$runs/study/fits/{}.json' '$out/study-{}.json'; }"
}
private() {
  for setting in private-rescaled private-one-size; do
    "$python" tools/fitting_study.py data_samples/people data_samples/people --preset-name "$preset" --out "$runs/study/fits" --only $setting \
      --shared-steps 1500 ${STUDY_FLAGS:-} && cp "$runs/study/fits/$setting.json" "$out/" || return
  done
}
collect() {
  "$python" - "$out" <<'P'
import json, sys
from pathlib import Path
from minirodin.evaluation import write_json
out = Path(sys.argv[1])
for kind in ("study", "private"):
    rows = [json.loads(p.read_text()) for p in sorted(out.glob(f"{kind}-*.json"))]
    shared = {k: rows[0][k] for k in ("date", "device", "shared_steps", "steps")} if rows else {}
    if rows:
        rows = {"commit": rows[-1]["commit"], "settings": [{k: v for k, v in r.items() if k not in shared} for r in rows]}
        write_json({**shared, **rows}, out / f"fitting_{kind}.json")
P
}
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  say "$stage done"
done
