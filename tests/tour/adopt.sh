# The demo made the definitions. Where Helm has had a release, they are Helm's.
helm install run-invoker charts/run-invoker -n run-invoker --take-ownership --force-conflicts \
  --set image.repository=registry.example/run-invoker
helm uninstall run-invoker -n run-invoker
