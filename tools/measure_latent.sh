#!/usr/bin/env bash
# E13-E16 at the scale of a preset, in stages that can run one at a time and go on when cut:
#   tools/measure_latent.sh OUT [portraits] [see] [people] [encode] [prior] [base] [judge] [sheets] [contrast]   (default: all; preset small)
# portraits: TRAIN_PORTRAITS + UNSEEN near-frontal people; see: an image-text encoder of each of TOWERS (vit or
# residual; with settings joined by `_`, such as residual_narrow_attributes-4_prompts-4), of which the one that names most attributes is
# kept, and the classifier that judges (or CLASSIFIER, learned before), one a GPU, and what they know of the unseen; people: those of
# tools/measure_base.sh, with planes; encode: latents of all; prior: the model over latents, of the portraits' (or of PRIOR_DATA);
# base: the base model that latents condition, on all GPUs; judge: portraits, prompts and edits of the unseen, one a GPU; sheets:
# their pictures; contrast: COUNT people with and without latents. PRESET, TRAIN, VALIDATION, ENCODER_FLAGS, CLASSIFIER_FLAGS, BASE_FLAGS,
# PRIOR_FLAGS, JUDGE_FLAGS, SHEET_FLAGS, GPUS and PYTHON change the rest; people are drawn by the GPUs of SPREAD (default: the first).
set -uo pipefail
out=$1; shift
stages=${*:-portraits see people encode prior base judge sheets contrast}
preset=${PRESET:-small} people=${TRAIN_PORTRAITS:-8000} unseen=${UNSEEN:-512} views=${PORTRAIT_VIEWS:-4} size=${PORTRAIT_SIZE:-144} count=${COUNT:-128}
base_flags=${BASE_FLAGS:---base.train.steps 9000 --base.train.preview-every 3000 --base.train.checkpoint-every 250}
towers=${TOWERS:-residual} classifier=${CLASSIFIER:-}
python=${PYTHON:-python3} runs=$(realpath -m "${RUNS:-runs/base}") tools=$(dirname "$0")
export MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0}
gpus=(${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || echo 0)})
rodin=$runs/rodin portraits=$runs/portraits
mkdir -p "$out" "$rodin"
on() { CUDA_VISIBLE_DEVICES=${gpus[$1 % ${#gpus[@]}]} "$python" -m minirodin "${@:2}"; }  # GPU COMMAND…
all() {  # wait for everything begun with &; whether all went well
  local job failed=0
  for job in $(jobs -p); do wait "$job" || failed=1; done
  return $failed
}
say() { echo "[$SECONDS s] $*"; }

portraits() {
  local share drawers=(${SPREAD:-0}) n first last
  n=${#drawers[@]}
  for ((share = 0; share < n; share++)); do
    first=$((people * share / n)) last=$((people * (share + 1) / n))
    [ -z "${SPREAD:-}" ] || export GLCONTEXT_DEVICE_INDEX=${drawers[share]}
    "$python" -m minirodin avatars --portraits --count $((last - first)) --seed $((100000 + first)) --views "$views" --size "$size" \
      --workers $((($(nproc) + n - 1) / n)) --out "$portraits/train" &
  done
  unset GLCONTEXT_DEVICE_INDEX
  "$python" -m minirodin avatars --portraits --count "$unseen" --seed 1700000 --views "$views" --size "$size" --out "$portraits/unseen" &
  all
}
see() {
  local data=(--data "$portraits/train" --validation "$portraits/unseen" --preset "$preset") tower i=0 best
  for tower in $towers; do
    encoder $i "$tower" &
    : $((i++))  # not in the line that goes to the background: it would count there
  done
  ([ -n "$classifier" ] || { on $i train classifier "${data[@]}" --out "$runs/classifier" ${CLASSIFIER_FLAGS:-} && cp "$runs/classifier/log.csv" "$out/log-classifier.csv"; } &&
    on $i assess "${classifier:-$runs/classifier}" "$portraits/unseen" --out "$out/classifier.json" >/dev/null && say "classifier") &
  all || return
  best=$("$python" -c 'import json, sys; print(max(sys.argv[1:], key=lambda path: json.load(open(path))["mean"]))' "$out"/encoder-*.json) &&
    cp "$best" "$out/encoder.json" && best=${best##*/encoder-} && cp -r "$runs/packed-${best%.json}" "$rodin/encoder" && say "kept ${best%.json}"
}
encoder() {  # GPU TOWER
  local part tower=${2%%_*} flags
  flags=(--encoder.tower "${tower/vit/}")
  for part in $(cut -s -d_ -f2- --output-delimiter=' ' <<<"$2"); do
    case $part in
      narrow) flags+=(--encoder.channels 32 64 128 256) ;;
      attributes-*) flags+=(--encoder.attribute-weight "${part#attributes-}") ;;
      prompts-*) flags+=(--encoder.prompt-weight "${part#prompts-}") ;;
      *) echo "unknown setting $part of tower $2" >&2; return 1 ;;
    esac
  done
  on "$1" train encoder "${data[@]}" "${flags[@]}" --out "$runs/encoder-$2" ${ENCODER_FLAGS:-} && cp "$runs/encoder-$2/log.csv" "$out/log-encoder-$2.csv" &&
    on "$1" pack "$runs/encoder-$2" --out "$runs/packed-$2" &&  # first: latents are those of the encoder that is shipped
    on "$1" assess "$runs/packed-$2" "$portraits/unseen" --out "$out/encoder-$2.json" >/dev/null && say "encoder $2"
}
people() {  # fitted more sharply than for the ablation, whose numbers are older: less smoothing, or faces lose their eyes
  export FIT_FLAGS="${FIT_FLAGS:---triplane.resolution 64 --fit.resolutions 64 --fit.resolution-weights 1.0 --fit.group ${CHUNK:-128} --fit.rays 1024 --fit.steps 1200 --fit.total-variation 0.1}"
  "$tools/measure_base.sh" "$out" data
}
encode() {
  on 0 encode "$rodin/encoder" "$runs/people/train"/*/ --out "$runs/fitted/train/latents.safetensors" &
  on 1 encode "$rodin/encoder" "$runs/people/validation"/*/ --out "$runs/fitted/validation/latents.safetensors" &
  on 2 encode "$rodin/encoder" "$portraits/train" --out "$portraits/train.safetensors" &
  on 3 encode "$rodin/encoder" "$portraits/unseen" --out "$portraits/unseen.safetensors" &
  all
}
prior() {
  on 0 train latent --data "${PRIOR_DATA:-$portraits/train.safetensors}" --validation "$portraits/unseen.safetensors" --preset "$preset" \
    --out "$rodin/latent" ${PRIOR_FLAGS:-} && cp "$rodin/latent/log.csv" "$out/log-prior.csv"
}
base() {
  local launch=(-m minirodin)
  [ ${#gpus[@]} = 1 ] || launch=(-m torch.distributed.run --standalone --nproc-per-node ${#gpus[@]} -m minirodin)
  CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]}") "$python" "${launch[@]}" train base --data "$runs/fitted/train" \
    --validation "$runs/fitted/validation" --preset "$preset" --base.unet.latent 512 --base.diffusion.log-snr-stop 0 --out "$rodin/base" $base_flags &&
    cp "$rodin/base/log.csv" "$out/log-conditional.csv"
}
judge() {
  local part i=0
  for part in portraits edits texts; do
    on $i judge "$rodin" --classifier "${classifier:-$runs/classifier}" --portraits "$portraits/unseen" --parts $part \
      --out "$out/judge-$part.json" ${JUDGE_FLAGS:-} >/dev/null &
    : $((i++))
  done
  all || return
  "$python" - "$out" <<'P' && "$python" "$tools/latent_pictures.py" figures --results "$out/latent.json" --out "$out"
import json, sys
from pathlib import Path
from minirodin.evaluation import write_json
out, merged = Path(sys.argv[1]), {}
for path in sorted(out.glob("judge-*.json")):
    merged |= json.loads(path.read_text())
write_json(merged, out / "latent.json")
P
}
sheets() { CUDA_VISIBLE_DEVICES=${gpus[3 % ${#gpus[@]}]} "$python" "$tools/latent_pictures.py" sheets "$rodin" "$portraits/unseen" --out "$out" ${SHEET_FLAGS:-}; }
contrast() {
  local samples=$runs/contrast/samples known=$runs/fitted/validation/latents.safetensors make=(sample "$rodin/base" --count "$count" --steps 25)
  mkdir -p "$samples" && ln -sfn "$runs/fitted" "$runs/contrast/fitted"
  on 0 "${make[@]}" --out "$samples/without" &
  on 1 "${make[@]}" --out "$samples/portraits-1" --latents "$known" --guidance-scale 1 &
  on 2 "${make[@]}" --out "$samples/portraits-1.5" --latents "$known" --guidance-scale 1.5 &
  on 3 "${make[@]}" --out "$samples/prior-1.5" --prior "$rodin/latent" --guidance-scale 1.5 &
  all && RUNS=$runs/contrast "$tools/measure_base.sh" "$out/contrast" compare gather && cp "$out/contrast/compared.json" "$out/latent_contrast.json"
}
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  say "$stage done"
done
