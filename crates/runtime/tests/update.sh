#!/bin/sh
# A runtime's `--root R --log L --log-format json update --resources FILE ID`, steered by files in R.
[ "$1 $3 $5 $6 $7 $8" = "--root --log --log-format json update --resources" ] || exit 64
root=$2 log=$4
refuse() {
	printf '{"level":"error","msg":"%s"}\n' "$1" >>"$log"
	exit 1
}
# Read before the call shows: who waits for it may take the file away then.
resources=$(cat "$9")
printf '%s %s\n' "${10}" "$resources" >>"$root/calls"
if [ -p "$root/hold" ]; then cat "$root/hold" >/dev/null; fi
if [ -e "$root/hang" ]; then sleep 1000; fi
if [ -e "$root/refuse" ]; then refuse "$(cat "$root/refuse")"; fi
left=$(cat "$root/freeze" 2>/dev/null || echo 0)
if [ "$left" -gt 0 ]; then
	echo $((left - 1)) >"$root/freeze"
	refuse "unable to freeze"
fi
