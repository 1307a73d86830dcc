#!/usr/bin/env bash
# Writes deploy/manifests anew: what the chart renders with its defaults, for those who install without Helm.
#
#   deploy/manifests.sh           writes them
#   deploy/manifests.sh --check   says whether they are what the chart renders, and writes nothing
set -euo pipefail
cd "$(dirname "$0")"

helm=$(../scripts/deploy-setup.sh)/helm
kubernetes=1.34.0

render() {
    echo "# $1 (deploy/manifests.sh makes this of deploy/helm/underpass: change that.)"
    echo "---"
    echo "apiVersion: v1"
    echo "kind: Namespace"
    echo "metadata: {name: underpass}"
    shift
    # What only Helm needs is left out.
    "$helm" template underpass helm/underpass --namespace underpass --kube-version "$kubernetes" "$@" |
        sed -e '/^# Source: /d' -e '/helm\.sh\/chart:/d' -e '/app\.kubernetes\.io\/managed-by: Helm/d'
}

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
render "A waypoint on each node: kubectl apply -f waypoint.yaml" >"$fresh/waypoint.yaml"
render "Underpass in ztunnel's place; read deploy/helm/underpass/README.md first." --set waypoint.enabled=false,node.enabled=true >"$fresh/node.yaml"

if [ "${1:-}" = --check ]; then
    diff -ru manifests "$fresh" >&2 || { echo "manifests: deploy/manifests is not what the chart renders: deploy/manifests.sh" >&2; exit 1; }
else
    mkdir -p manifests
    cp "$fresh"/*.yaml manifests/
fi
