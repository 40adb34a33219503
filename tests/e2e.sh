#!/usr/bin/env bash
# The image and the chart on a real cluster, against the sandbox's Cloud Run API on this machine: a policy goes in, the grant
# comes out, drift is put right, and uninstalling changes no IAM. `make e2e`.
#
# E2E_KUBECONFIG: an existing cluster whose nodes can pull E2E_IMAGE and reach E2E_HOST; without it, a kind cluster is made and
# thrown away. E2E_KEEP=1 keeps it.
set -euo pipefail
cd "$(dirname "$0")/.."
need() { command -v "$1" > /dev/null || { echo "make e2e needs $1; it is not installed here" >&2; exit 1; }; }
need kubectl
need helm
need curl
namespace=run-invoker
work=$(mktemp -d)
cleanup() {
  [ -n "${sandbox:-}" ] && kill "$sandbox" 2> /dev/null || true
  [ -n "${made:-}" ] && [ -z "${E2E_KEEP:-}" ] && kind delete cluster --name "$made"
  rm -rf "$work"
}
trap cleanup EXIT

if [ -z "${E2E_KUBECONFIG:-}" ]; then
  need docker
  need kind
  image=run-invoker:e2e
  make image IMAGE="$image" ENGINE=docker
  made=run-invoker-e2e
  kind create cluster --name "$made" --kubeconfig "$work/kubeconfig" --wait 120s
  kind load docker-image "$image" --name "$made"
  export KUBECONFIG="$work/kubeconfig"
  host=$(docker network inspect kind -f '{{range .IPAM.Config}}{{.Gateway}} {{end}}' | tr ' ' '\n' | grep -m 1 -F .)
else
  export KUBECONFIG="$E2E_KUBECONFIG"
  image=${E2E_IMAGE:?with E2E_KUBECONFIG: the image that the cluster can pull}
  host=${E2E_HOST:?with E2E_KUBECONFIG: the address of this machine as the cluster sees it}
fi

echo "--- Cloud Run: the sandbox on $host:18080"
cargo build --quiet -p sandbox
./target/debug/sandbox --run 0.0.0.0:18080 --kube 127.0.0.1:18081 --control 127.0.0.1:18082 > "$work/sandbox.log" 2>&1 &
sandbox=$!
for _ in $(seq 50); do curl -sf http://127.0.0.1:18082/ > /dev/null && break; sleep 0.2; done
curl -sf -X POST http://127.0.0.1:18082/services -H 'content-type: application/json' \
  -d '{"project": "acme-prod", "region": "europe-west1", "name": "web"}' > /dev/null
iam() { curl -sf "http://127.0.0.1:18080/v2/projects/acme-prod/locations/europe-west1/services/web:getIamPolicy"; }

echo "--- the chart"
helm upgrade --install run-invoker charts/run-invoker -n "$namespace" --create-namespace --wait --timeout 3m \
  --set image.repository="${image%:*}" --set image.tag="${image##*:}" --set image.pullPolicy=IfNotPresent --set shards=2 \
  --set-json "extraArgs=[\"--anonymous\",\"--cloud-run-endpoint=http://$host:18080\"]" \
  --set-json 'networkPolicy.extraEgress=[{"ports":[{"port":18080,"protocol":"TCP"}]}]'

echo "--- a policy"
kubectl apply --server-side -f - <<'POLICY'
apiVersion: run-invoker.dev/v1alpha1
kind: InvokerPolicy
metadata: {name: web, namespace: default}
spec:
  project: acme-prod
  services: [{name: web, region: europe-west1}]
  invokers: [{member: "user:a@acme.com"}]
  mode: Enforce
  interval: 10s
POLICY
kubectl -n default wait --for=condition=Ready ivp/web --timeout=60s
iam | grep -q user:a@acme.com

echo "--- drift"
etag=$(iam | sed -n 's/.*"etag": *"\([^"]*\)".*/\1/p')
curl -sf -X POST "http://127.0.0.1:18080/v2/projects/acme-prod/locations/europe-west1/services/web:setIamPolicy" \
  -H 'content-type: application/json' -d "{\"policy\": {\"etag\": \"$etag\", \"bindings\": [{\"role\": \"roles/run.invoker\", \
\"members\": [\"user:a@acme.com\", \"user:intruder@evil.org\"]}]}}" > /dev/null
for _ in $(seq 40); do iam | grep -q intruder || break; sleep 1; done
if iam | grep -q intruder; then echo "drift was not corrected" >&2; exit 1; fi

echo "--- away"
before=$(iam)
helm uninstall run-invoker -n "$namespace" --wait
[ "$before" = "$(iam)" ] || { echo "uninstalling changed IAM" >&2; exit 1; }
kubectl -n default get ivp web > /dev/null
echo "e2e: passed"
