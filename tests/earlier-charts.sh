#!/usr/bin/env bash
# Stores every chart of the git history in tests/earlier-charts.tar.xz, for the upgrade test: a clean checkout has no history.
# Folders are NUMBER-TREE, in the order of history. `make earlier-charts`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(git rev-parse --is-shallow-repository)" = false ] || { echo "this checkout has no full history" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n=0
seen=" "
for commit in $(git log --reverse --format=%H HEAD -- charts/run-invoker); do
  tree=$(git rev-parse "$commit:charts/run-invoker")
  case "$seen" in *" $tree "*) continue ;; esac
  seen="$seen$tree "
  n=$((n + 1))
  folder=$(printf '%s/%02d-%s' "$work" "$n" "${tree:0:12}")
  mkdir "$folder"
  git archive "$commit:charts/run-invoker" | tar x -C "$folder"
done
tar c --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work" . | xz -9e > tests/earlier-charts.tar.xz
echo "$n charts in tests/earlier-charts.tar.xz"
