source tests/tour/before.sh
source tests/tour/adopt.sh
helm install run-invoker charts/run-invoker -n run-invoker --create-namespace --set image.repository=registry.example/run-invoker
