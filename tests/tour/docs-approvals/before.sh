# Namespace payments: three revocations of its policy wait for an approver, and access may be requested. Ada may request, Grace may
# approve, each with a context of the kubeconfig; the roles are the chart's. policies/ is a pull request.
kubectl apply --server-side -f samples/00-namespaces.yaml
source tests/tour/adopt.sh
helm install run-invoker charts/run-invoker -n run-invoker --create-namespace --set image.repository=registry.example/run-invoker
kubectl apply --server-side -f guardrail.yaml -f checkout.yaml
kubectl -n payments wait --for=condition=Ready ivp/checkout --timeout 60s
sed '/x[123]@acme.com/d' checkout.yaml | kubectl apply --server-side -f -
kubectl -n payments wait --for=condition=Stalled ivp/checkout --timeout 60s
for who in ada:requester grace:approver; do
  name=${who%:*} role=${who#*:}
  kubectl -n payments create rolebinding $name --clusterrole run-invoker-$role --serviceaccount payments:$name
  kubectl config set-credentials $name --token sa:payments:$name
  kubectl config set-context $name --cluster sandbox --user $name --namespace payments
done
