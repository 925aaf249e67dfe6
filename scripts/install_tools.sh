#!/usr/bin/env bash
# Installs into .venv/tools what some tests drive, beside what is of the system: a browser, clients of other projects,
# checkers of manifests and rules. What only Debian's packages have is installed where it is missing and apt-get may.
# PIP_ARGS: more arguments for pip install. Ends with 1 and names what could not be had.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.venv/tools
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)

# Whether one of some programs is there.
has() { for name in "$@"; do command -v "$name" >/dev/null && return; done; return 1; }
updated=false
update() { $updated || "${as_root[@]}" apt-get update -qq -o Acquire::Retries=3; updated=true; }

# Each program that tests run, or its other names, and Debian's package that has it.
packages=()
want() { local package=$1; shift; has "$@" || packages+=("$package"); }
want chromium chromium chromium-browser google-chrome
want nodejs node
want npm npm
want kubernetes-client kubectl
want openssl openssl
want systemd systemd-analyze
if [ ${#packages[@]} -gt 0 ] && has apt-get; then
    update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
fi

[ -x $tools/bin/python ] || .venv/bin/python -m venv $tools
pip=("$tools/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile)
read -ra more <<<"${PIP_ARGS:-}"
"${pip[@]}" "${more[@]}" -r requirements/tools.txt
# Libraries whose files and numbers ours are compared with, in the tests' own process, without what else they ask for.
"${pip[@]}" "${more[@]}" --no-deps --upgrade --target $tools/originals -r requirements/originals.txt
if has npm; then npm install --silent --no-audit --no-fund --prefix $tools axe-core@4.14.1 typescript@7.0.2; fi

# Unpacked and not installed: the package would start a server.
if ! { has promtool && has prometheus; } && [ ! -x $tools/bin/promtool ] && has apt-get; then
    update
    (cd $tools && apt-get download -qq prometheus 2>/dev/null && dpkg -x prometheus_*.deb prometheus &&
        rm prometheus_*.deb && ln -sf ../prometheus/usr/bin/{promtool,prometheus} bin/) || true
fi

left=()
need() { PATH=$PATH:$tools/bin has "$@" || left+=("$1"); }
need chromium chromium-browser google-chrome
for name in node kubectl openssl systemd-analyze promtool prometheus kubernetes-validate schemathesis; do need "$name"; done
[ -f $tools/node_modules/axe-core/axe.min.js ] || left+=(axe-core)
if [ ${#left[@]} -gt 0 ]; then
    echo "Tests that drive these are skipped, since they are not here and apt-get did not bring them: ${left[*]}" >&2
    exit 1
fi
