#!/bin/sh
# Lays out in target/package what the package is made of and git does not hold: the programs without their symbols, the
# manual, the shells' completions and the sample configuration, all of which the program prints itself.
#   deploy/debian/stage.sh DIR
set -eu
cd "$(dirname "$0")/../.."
out=target/package
rm -rf "$out"
mkdir -p "$out/man" "$out/completions"

strip --strip-all -o "$out/crimson" "$1/crimson"
strip --strip-all -o "$out/crimson-monitor" "$1/crimson-monitor"
crimson=$out/crimson
"$crimson" man crimson >"$out/man/crimson.8"
"$crimson" man crimson-config.toml >"$out/man/crimson-config.toml.5"
"$crimson" completions bash >"$out/completions/crimson"
"$crimson" completions zsh >"$out/completions/_crimson"
"$crimson" completions fish >"$out/completions/crimson.fish"
"$crimson" config default >"$out/config.toml"
