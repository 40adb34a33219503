source tests/tour/adopt.sh
