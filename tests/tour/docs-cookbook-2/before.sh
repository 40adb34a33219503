source tests/tour/before.sh
mkdir policies
cp samples/10-audit.yaml policies/
