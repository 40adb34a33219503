# What most pages start from: the policies of shop and payments, checkout enforced, archive waiting for approval.
kubectl apply --server-side -f samples/00-namespaces.yaml -f samples/10-audit.yaml -f samples/20-selector.yaml \
  -f samples/50-guardrail.yaml -f samples/60-archive.yaml
kubectl -n shop patch ivp checkout --type merge -p '{"spec":{"mode":"Enforce"}}'
kubectl -n shop wait --for=condition=Stalled ivp/archive --timeout 60s
until kubectl -n shop get ivp checkout -o jsonpath='{.status.lastChange}' | grep -q .; do sleep 0.2; done
