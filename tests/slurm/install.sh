#!/usr/bin/env bash
# What tests/slurm needs, from Debian's packages. Where we may not install it, those tests skip with a reason.
set -euo pipefail

packages=(slurm-wlm munge openmpi-bin libpmix-dev iproute2 util-linux shellcheck)
missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done

if [ ${#missing[@]} -eq 0 ]; then exit 0; fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests/slurm: not installed: ${missing[*]} (as root on Debian, this script installs them)"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
echo "tests/slurm: installing ${missing[*]}"
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
