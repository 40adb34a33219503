#!/usr/bin/env bash
# Builds the operator's image without any base image: a static program, CA certificates, users, a bill of materials. `make image`.
#
# IMAGE=NAME:TAG     what it is called (run-invoker:VERSION)
# ENGINE=...         docker, podman or buildah; by default the first of them that works here
# OUT=FOLDER         where the archive run-invoker.tar and the bill of materials go (target/image)
# CA_CERTIFICATES=F  the certificates, as PEM; by default Mozilla's from Debian's package ca-certificates
#
# The same source, toolchain and packages give the same image, wherever it is built: paths are cut off, and all times are that of the
# commit (SOURCE_DATE_EPOCH). CARGO_TARGET_DIR and CUT (the folder that is cut off) are for the test of this.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
image=${IMAGE:-run-invoker:$version}
out=${OUT:-$root/target/image}
built=${CARGO_TARGET_DIR:-$root/target/image}
cut=${CUT:-$root}
revision=${REVISION:-$(git rev-parse HEAD 2> /dev/null || echo unknown)}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 0)}
die() { echo "make image: $*" >&2; exit 1; }

works() {
  case "$1" in
    docker) docker info > /dev/null 2>&1 ;;
    podman | buildah) command -v "$1" > /dev/null ;;
    *) die "ENGINE=$1 is not docker, podman or buildah" ;;
  esac
}
if [ -n "${ENGINE:-}" ]; then
  works "$ENGINE" || die "ENGINE=$ENGINE does not work here$([ "$ENGINE" = docker ] && echo ' (is its daemon running?)')"
  engine=$ENGINE
else
  for engine in docker podman buildah none; do
    [ $engine != none ] || die "needs docker with a running daemon, podman, or buildah; none works here. Debian: apt-get install buildah"
    works $engine && break
  done
fi
command -v python3 > /dev/null || die "needs python3 for the bill of materials"
# On Debian the file in /etc/ssl has what this machine's administrators added, too; an image must not.
certificates=${CA_CERTIFICATES:-}
if [ -z "$certificates" ]; then
  ls /usr/share/ca-certificates/mozilla/*.crt > /dev/null 2>&1 \
    || die "needs Debian's package ca-certificates (apt-get install ca-certificates), or CA_CERTIFICATES=FILE with PEM certificates"
fi
host=$(rustc -vV | sed -n 's/^host: //p')
case "$host" in
  x86_64-*-linux-gnu)
    arch=amd64
    # The linker is Rust's own lld: relocations packed, functions with the same code folded, as in Chromium. 7 % smaller.
    link=(-Clink-arg=-Wl,--pack-dyn-relocs=relr -Clink-arg=-Wl,--icf=all) ;;
  aarch64-*-linux-gnu)
    arch=arm64
    link=() ;;
  *) die "builds on Linux with glibc, x86_64 or aarch64; not on $host" ;;
esac

# Static, so that no library of this machine goes in. --target keeps the flags away from build scripts.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
RUSTFLAGS="-Ctarget-feature=+crt-static --remap-path-prefix=$cut=. --remap-path-prefix=$cargo_home=cargo" \
CFLAGS="-ffile-prefix-map=$cut=. -ffile-prefix-map=$cargo_home=cargo" \
CARGO_INCREMENTAL=0 SOURCE_DATE_EPOCH=0 \
  ${CARGO:-cargo} rustc --profile dist --locked --no-default-features --features otlp --bin run-invoker --target "$host" --target-dir "$built" \
  -- "${link[@]}"
program=$built/$host/dist/run-invoker

mkdir -p "$out"
tree=$out/root
rm -rf "$tree"
mkdir -p "$tree/etc/ssl/certs" "$tree/usr/share/sbom" "$tree/usr/share/doc/run-invoker"
cp "$program" "$tree/run-invoker"
if [ -n "$certificates" ]; then
  cp "$certificates" "$tree/etc/ssl/certs/ca-certificates.crt"
else
  LC_ALL=C; export LC_ALL
  for file in /usr/share/ca-certificates/mozilla/*.crt; do cat "$file"; done > "$tree/etc/ssl/certs/ca-certificates.crt"
fi
printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' > "$tree/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' > "$tree/etc/group"
printf 'hosts: files dns\n' > "$tree/etc/nsswitch.conf"
cp LICENSE "$tree/usr/share/doc/run-invoker/LICENSE"
SOURCE_DATE_EPOCH=$epoch python3 image/sbom.py "$host" > "$out/run-invoker.cdx.json"
cp "$out/run-invoker.cdx.json" "$tree/usr/share/sbom/run-invoker.cdx.json"
find "$tree" -type d -exec chmod 755 {} +
find "$tree" -type f -exec chmod 644 {} +
chmod 755 "$tree/run-invoker"
find "$tree" -exec touch -h -d "@$epoch" {} +

archive=$out/run-invoker.tar
rm -f "$archive"
args=(--build-arg "REVISION=$revision" --build-arg "VERSION=$version" --no-cache -f Dockerfile -t "$image")
case $engine in
  docker)
    docker build --quiet --build-arg "SOURCE_DATE_EPOCH=$epoch" "${args[@]}" "$tree" > /dev/null
    docker save "$image" -o "$archive" ;;
  podman)
    podman build --quiet --isolation chroot --timestamp "$epoch" "${args[@]}" "$tree" > /dev/null
    podman save --quiet --format docker-archive -o "$archive" "$image" ;;
  buildah)
    buildah build --quiet --isolation chroot --timestamp "$epoch" "${args[@]}" "$tree" > /dev/null
    buildah push --quiet "$image" "docker-archive:$archive:$image" ;;
esac
id=$(python3 -c 'import hashlib, json, sys, tarfile
tar = tarfile.open(sys.argv[1])
read = lambda name: tar.extractfile(name).read()
print("sha256:" + hashlib.sha256(read(json.loads(read("manifest.json"))[0]["Config"])).hexdigest())' "$archive")
size=$(du -sb --apparent-size "$tree" | cut -f 1)
echo "$image: linux/$arch, $(awk "BEGIN {printf \"%.1f\", $size / 1048576}") MiB, by $engine"
echo "id $id"
echo "archive $archive"
