#!/bin/bash
# A job on a spot v5e-16, four machines of four chips, and on another one whenever it is preempted, until all is drawn.
# In the folder that holds the autolora-jax checkout:  v5e16.sh job.py gs://bucket/anna
job=$1 out=$2
name=${NAME:-autolora} zone=${ZONE:-us-west4-a}

tpus() { gcloud compute tpus "$@" --zone="$zone"; }
state() { tpus queued-resources describe "$name" --format="value(state.state)"; }
everywhere() { tpus tpu-vm ssh "$name" --worker=all --command="$1"; }

draw() {
    tpus tpu-vm scp --recurse autolora-jax "$job" "$name:" --worker=all &&
        everywhere "curl -LsSf https://astral.sh/uv/install.sh | sh" &&
        everywhere "~/.local/bin/uv tool install --python 3.12 --with gcsfs './autolora-jax[tpu,batch]'" &&
        everywhere "PATH=~/.local/bin:\$PATH bash autolora-jax/docs/recipes/until_done.sh \
            ${job##*/} --out $out --distributed"
}

while true; do
    tpus queued-resources create "$name" --node-id="$name" --spot \
        --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite || exit 1
    until [[ $(state) =~ ^(ACTIVE|FAILED|SUSPENDED)$ ]]; do sleep "${PAUSE:-30}"; done
    draw
    code=$?
    [ $code = 0 ] || sleep "${PAUSE:-60}" # a preempted slice is ACTIVE for a moment yet
    left=$(state)
    tpus queued-resources delete "$name" --force --quiet
    [[ $code =~ ^[03]$ ]] && exit $code # 3: some pictures can't be drawn
    [ "$left" = ACTIVE ] && exit 1 # the slice is there, so it is the job that can't go on: see what it said
done
