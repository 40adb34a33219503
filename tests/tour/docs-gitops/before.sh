kubectl apply --server-side -f samples/00-namespaces.yaml
mkdir policies
cp samples/10-audit.yaml policies/
