source tests/tour/before.sh
source tests/tour/adopt.sh
mkdir guardrails
cp samples/50-guardrail.yaml guardrails/
kubectl apply --server-side -f prometheusrules.yaml
