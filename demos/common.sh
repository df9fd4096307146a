# What the demos share: a cluster, a node of ours, Akri's Agent and Controller. Sourced by their `run`.
# shellcheck shell=bash
set -euo pipefail

repository=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
cluster=own
linux_node=
started_at=$(date +%s%N)
processes=()
work=

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    cat <<TEXT

  --cluster own        a control plane of its own on this machine, gone at the end (default)
  --cluster existing   the cluster of \$KUBECONFIG. BOOTSTRAP_FILE: a bootstrap kubeconfig for the node (README.md,
                       "Join a cluster"); IMAGES: a registry with debug-echo:v0.1.0 and debug-echo-broker:v0.1.0
  AKRI_BIN             directory with Akri's programs agent and controller, version 0.13
  AKRI_CRDS            directory with Akri's CustomResourceDefinitions (not needed if the cluster has them)
TEXT
}

# The time since the start, and what happens.
say() {
    local now
    now=$(((($(date +%s%N) - started_at)) / 1000000))
    printf '\033[1m%6s s  %s\033[0m\n' "$((now / 1000)).$(printf %03d $((now % 1000)))" "$*"
}

fail() {
    echo "$(basename "$(dirname "$0")"): $1" >&2
    shift
    for log in "$@"; do
        echo "--- the end of $log:" >&2
        tail -n 30 "$work/$log" >&2 || true
    done
    exit 1
}

# Waits for a condition for at most 60 s.
await() {
    local what=$1
    shift
    local until=$((SECONDS + 60))
    while [ "$SECONDS" -lt "$until" ]; do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    mapfile -t logs < <(cd "$work" && ls -- *.log)
    fail "$what did not happen within 60 s" "${logs[@]}"
}

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        --cluster) cluster=${2:?--cluster own or existing} && shift 2 ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && exit 2 ;;
        esac
    done
    if [ ! -x "${AKRI_BIN:-}/agent" ] || [ ! -x "${AKRI_BIN:-}/controller" ]; then
        cat >&2 <<'TEXT'
Akri's own programs are missing: set AKRI_BIN to a directory with `agent` and `controller` of Akri 0.13, and AKRI_CRDS to one
with its CustomResourceDefinitions. They are in Akri's images and chart:

    mkdir -p bin && for program in agent controller; do
      id=$(docker create ghcr.io/project-akri/akri/$program:v0.13.26)
      docker cp $id:/usr/local/bin/akri bin/$program && docker rm $id
    done
    helm pull akri-helm-charts/akri --version 0.13.26 --untar      # akri/crds

or built from its source with `cargo build --release -p agent -p controller` (deployment/helm/crds has the definitions).
TEXT
        exit 1
    fi
}

finish() {
    local status=$?
    set +e
    if [ "$cluster" = existing ] && [ -n "$work" ]; then
        kubectl delete configuration akri-debug-echo --ignore-not-found --wait=false
        kubectl delete pod wasi-debug-echo --ignore-not-found --wait=false
    fi
    for process in "${processes[@]}"; do kill "$process" 2>/dev/null; done
    wait 2>/dev/null
    [ "$cluster" = existing ] || [ ! -d "$work/cluster" ] || "$control_plane" down "$work/cluster" >/dev/null
    if [ "$status" = 0 ]; then rm -rf "$work"; else echo "logs are in $work" >&2; fi
}

# Runs a program in the background, with its output in a log.
start() {
    local log=$1
    shift
    "$@" >>"$work/$log" 2>&1 &
    processes+=($!)
}

# Where cargo builds a workspace.
target_directory() {
    (cd "$1" && cargo metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
}

build() {
    say "building the node and the guests"
    make --silent -C "$repository" guests build
    program=$(target_directory "$repository")/debug/akri-krustlet
    control_plane=$(target_directory "$repository")/debug/control-plane
    work=$(mktemp -d)
    trap finish EXIT
}

# Sets kubectl, and images of the guests.
start_cluster() {
    if [ "$cluster" = existing ]; then
        : "${KUBECONFIG:?}" "${BOOTSTRAP_FILE:?--cluster existing needs BOOTSTRAP_FILE}" "${IMAGES:?--cluster existing needs IMAGES}"
        handler_image=$IMAGES/debug-echo:v0.1.0
        broker_image=$IMAGES/debug-echo-broker:v0.1.0
    else
        say "a Kubernetes control plane starts"
        "$control_plane" up "$work/cluster" ${linux_node:+--linux-node "$linux_node"} >"$work/control-plane.log" 2>&1 ||
            fail "the control plane did not start" control-plane.log
        export KUBECONFIG=$work/cluster/admin.conf
        BOOTSTRAP_FILE=$work/cluster/bootstrap.conf
        local guests
        guests=$(target_directory "$repository/wasm-handlers")/wasm32-wasip1/release
        handler_image=fs://$guests/debug-echo.wasm
        broker_image=fs://$guests/debug-echo-broker.wasm
        PATH=$(dirname "$("$control_plane" build)"):$PATH
    fi
    if [ -n "${AKRI_CRDS:-}" ]; then kubectl apply -f "$AKRI_CRDS" >/dev/null 2>&1 || fail "AKRI_CRDS=$AKRI_CRDS cannot be applied"; fi
    await "Akri's CustomResourceDefinitions (AKRI_CRDS)" kubectl get configurations.akri.sh,instances.akri.sh
    kubectl apply -k "$repository/manifests/node" >/dev/null
}

# start_node NAME PORT: a node with its files in a directory of its name.
start_node() {
    local name=$1 directory=$work/$1
    say "the node joins: akri-krustlet run --bootstrap-file bootstrap.conf --node-name $name"
    start "$name.log" "$program" run --bootstrap-file "$BOOTSTRAP_FILE" --node-name "$name" --port "$2" \
        --data-dir "$directory/data" --discovery-handlers-directory "$directory/akri" \
        --device-plugins-directory "$directory/kubelet/device-plugins" --allow-local-modules
    await "the node's registration" kubectl get node "$name"
    kubectl wait --for=condition=Ready "node/$name" --timeout=60s >/dev/null
    say "node $name is Ready"
}

# Akri's Agent looks for a kubelet in /var/lib/kubelet and nowhere else: it gets a view of the machine in which the node's
# directory is there. A kubelet of this machine is not touched. For the background: it becomes the program.
in_mount_namespace() {
    local namespaces=--mount
    [ "$(id -u)" = 0 ] || namespaces="--mount --map-root-user"
    # shellcheck disable=SC2086
    exec unshare $namespaces sh -c '
        mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/kubelet && mount --bind "$0" /var/lib/kubelet && exec "$@"' \
        "$kubelet" "$@"
}

# The view of the machine that the Linux node of the control plane has, in which /var/lib/kubelet is its own.
in_linux_node() {
    exec nsenter --mount="/proc/$(cat "$work/cluster/linux-node.pid")/ns/mnt" "$@"
}

# start_akri NODE: the Agent is that of this node, and its handlers are those of wasm-node.
start_akri() {
    say "Akri's Agent (of node $1) and Controller start"
    kubelet=$work/$1/kubelet
    local where=in_mount_namespace
    [ "$1" != "$linux_node" ] || where=in_linux_node
    start agent.log "$where" env AGENT_NODE_NAME="$1" DISCOVERY_HANDLERS_DIRECTORY="$work/wasm-node/akri" \
        METRICS_PORT="$((20000 + RANDOM % 10000))" RUST_LOG="${RUST_LOG:-info}" "$AKRI_BIN/agent"
    start controller.log env METRICS_PORT="$((20000 + RANDOM % 10000))" RUST_LOG="${RUST_LOG:-info}" "$AKRI_BIN/controller"
    await "the Agent's registration socket" test -S "$work/wasm-node/akri/agent-registration.sock"
}

# Waits for a pod for at most 60 s, or says what keeps it.
await_pod() {
    kubectl wait --for=condition=Ready "pod/$1" --timeout=60s >/dev/null 2>&1 ||
        fail "pod $1 is not ready: $(kubectl get pod "$1" -o jsonpath='{.status.reason} {.status.message} {.status.containerStatuses[*].state}')" wasm-node.log
}

# The exchange volume of the handler is a directory of this run, its image the one of this run.
apply_handler() {
    sed -e "s|image: .*|image: $handler_image|" -e "s|path: /tmp/wde-dir|path: $work/exchange|" \
        -e "s|^spec:|spec:\n  nodeName: wasm-node|" \
        "$repository/manifests/debug-echo/pod.yaml" | kubectl apply -f - >/dev/null
    await_pod wasi-debug-echo
    say "handler pod wasi-debug-echo runs on wasm-node, which serves debugEcho.sock for it"
}

instances() { kubectl get instances.akri.sh -o name; }
has_instances() { [ "$(instances | grep -c .)" = "$1" ]; }
brokers() { kubectl get pods -l app -l controller=akri.sh -o name; }
# As many brokers run, and have said which device they have.
brokers_run() {
    [ "$(kubectl get pods -l controller=akri.sh --field-selector status.phase=Running -o name | grep -c .)" = "$1" ]
}
no_brokers() { [ -z "$(brokers)" ]; }
