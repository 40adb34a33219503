kubectl apply --server-side -f samples/00-namespaces.yaml -f samples/10-audit.yaml
