#!/usr/bin/env bash
# The page of `kubectl invoker access -o html` for the services of the demo, before anybody enforces checkout: access-page.sh PAGE
set -euo pipefail
page=$1
folder=$(mktemp -d)
./target/debug/examples/demo --keep --bare --no-events --any-port --folder "$folder" > "$folder/out" &
demo=$!
trap 'kill -INT $demo; wait $demo || true; rm -r "$folder"' EXIT
until grep -q '^Ctrl-C' "$folder/out"; do kill -0 $demo; sleep 0.2; done
# shellcheck disable=SC1091
source "$folder/env"
kubectl apply --server-side -f samples/ > /dev/null
gcloud run services add-iam-policy-binding checkout --region europe-west1 --member allUsers --role roles/run.invoker --condition None > "$folder/said" 2>&1 || { cat "$folder/said"; exit 1; }
for policy in payments/payments payments/incident; do
  kubectl -n "${policy%/*}" wait --for=condition=Ready "ivp/${policy#*/}" --timeout 60s > /dev/null
done
kubectl invoker access --project acme-prod -o html > "$page"
