#!/usr/bin/env python3
"""A bill of materials of the operator, CycloneDX 1.5: `make sbom`. Every crate that the program is linked from, by Cargo.lock, and
what is linked or copied in beside them. No time but SOURCE_DATE_EPOCH and no random number, so that the same source gives the same."""
import datetime
import json
import os
import re
import subprocess
import sys
import tomllib


def ask(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def debian(package):
    try:
        return ask("dpkg-query", "--show", "--showformat=${Version}", package)
    except (OSError, subprocess.CalledProcessError):
        return None


def expression(license):
    # Before SPDX, alternatives were written with a slash.
    return license.replace("/", " OR ") if license else None


target = sys.argv[1] if len(sys.argv) > 1 else ask("rustc", "-vV").split("host: ")[1].split()[0]
with open("Cargo.lock", "rb") as file:
    lock = {(p["name"], p["version"]): p for p in tomllib.load(file)["package"]}
lines = ask("cargo", "tree", "--locked", "--package", "run-invoker", "--edges", "normal,no-proc-macro",
            "--no-default-features", "--features", "otlp", "--target", target, "--prefix", "depth", "--format", "|{p}|{l}")
components, depends, path = {}, {}, []
for line in lines.splitlines():
    depth, package, license = line.split("|", 2)
    name, version = package.split()[:2]
    version = version.removeprefix("v")
    license = license.removesuffix(" (*)").strip()
    ref = f"pkg:cargo/{name}@{version}"
    del path[int(depth):]
    if path:
        depends.setdefault(path[-1], set()).add(ref)
    path.append(ref)
    depends.setdefault(ref, set())
    part = {"type": "library", "bom-ref": ref, "name": name, "version": version, "purl": ref}
    if license:
        part["licenses"] = [{"expression": expression(license)}]
    if checksum := lock[name, version].get("checksum"):
        part["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    components[ref] = part
main = next(iter(components))
program = components.pop(main) | {"type": "application"}
rust = re.match(r"rustc (\S+)", ask("rustc", "--version"))[1]
beside = [("generic", "rust-std", rust, "MIT OR Apache-2.0", "Rust's standard library")]
if version := debian("libc6-dev"):
    beside.append(("deb/debian", "glibc", version, "LGPL-2.1-or-later", "linked statically"))
if version := debian("ca-certificates"):
    beside.append(("deb/debian", "ca-certificates", version, "MPL-2.0", "Mozilla's certificates, in the image"))
for kind, name, version, license, description in beside:
    ref = f"pkg:{kind}/{name}@{version}"
    components[ref] = {"type": "library", "bom-ref": ref, "name": name, "version": version, "purl": ref, "description": description,
                       "licenses": [{"expression": license}]}
    depends[ref] = set()
    depends[main].add(ref)
when = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.timezone.utc)
bill = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "metadata": {"timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": program},
    "components": [components[ref] for ref in sorted(components)],
    "dependencies": [{"ref": ref, "dependsOn": sorted(depends[ref])} for ref in sorted(depends)],
}
json.dump(bill, sys.stdout, indent=1)
print()
