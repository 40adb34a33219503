#!/usr/bin/env bash
# Packages the chart: target/run-invoker-VERSION.tgz. `make package`.
#
# IMAGE=REPOSITORY and DIGEST=sha256:... set the image that the package installs by default.
# REGISTRY=oci://HOST/PATH pushes the package there; PUSH_FLAGS are helm's, for example --plain-http.
set -euo pipefail
out=${OUT:-$(dirname "$0")/../target}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
chart=$out/package/run-invoker
rm -rf "$out/package"
mkdir -p "$out/package"
cp -R charts/run-invoker "$chart"
version=$(sed -n 's/^version: //p' "$chart/Chart.yaml")
if [ -n "${IMAGE:-}" ]; then
  sed -i "s|^  repository: \"\"$|  repository: $IMAGE|; s|^  # Required: no image is published yet.*|  # The image that was built with this package.|" "$chart/values.yaml"
  sed -i "s|^  digest: \"\"$|  digest: ${DIGEST:-\"\"}|" "$chart/values.yaml"
  # Its README is about this image, then.
  sed -i "/^No image is published yet/,/^$/d; /^  --set image.repository=YOUR-REGISTRY/d; s|^. .image.repository. .*|\| \`image.repository\` \| \`$IMAGE\` \| The image that was built with this package. \||" "$chart/README.md"
  [ -z "${REGISTRY:-}" ] || sed -i "s|run-invoker charts/run-invoker |run-invoker $REGISTRY/run-invoker |" "$chart/README.md"
  if [ -n "${DIGEST:-}" ]; then reference=$IMAGE@$DIGEST; else reference=$IMAGE:$version; fi
  cat >> "$chart/Chart.yaml" <<EOF
  artifacthub.io/images: |
    - name: run-invoker
      image: $reference
EOF
fi
helm lint --strict --quiet "$chart"
helm package "$chart" --destination "$out"
rm -rf "$out/package"
sha256sum "$out/run-invoker-$version.tgz"
if [ -n "${REGISTRY:-}" ]; then
  # shellcheck disable=SC2086
  helm push "$out/run-invoker-$version.tgz" "$REGISTRY" ${PUSH_FLAGS:-}
fi
