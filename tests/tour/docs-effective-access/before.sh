source tests/tour/before.sh
source tests/tour/adopt.sh
helm install run-invoker charts/run-invoker -n run-invoker --create-namespace --set image.repository=registry.example/run-invoker
curl -sSf -o /dev/null -X POST "$RUN_INVOKER_CLOUD_RUN_ENDPOINT/v1/projects/acme-prod:setIamPolicy" -H 'content-type: application/json' \
  -d '{"policy": {"bindings": [{"role": "roles/run.admin", "members": ["group:platform@acme.com"]}]}}'
