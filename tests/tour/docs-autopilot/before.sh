source tests/tour/release.sh
