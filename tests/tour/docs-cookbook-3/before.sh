source tests/tour/before.sh
