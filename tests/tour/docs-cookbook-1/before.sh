kubectl apply --server-side -f samples/00-namespaces.yaml
