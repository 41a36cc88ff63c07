#!/bin/sh
# What `make demo` shows. $1 is the folder of the commands (.venv/bin), $2 is "train" where the training stack is there.
set -eu
cd "$(dirname "$0")/.."
bin=$PWD/$1
stack=${2:-}

show() { # prints a command and runs it; exit code 1 only says that something was found
    printf '\n$ %s\n' "$*"
    PATH=$bin:$PATH "$@" || test $? -eq 1
}

printf '== This machine\n'
show qlora-doctor check

printf '\n== An example project with planted faults, on the machine that its facts.json describes\n'
cd examples/planted
show qlora-doctor check train.py --facts facts.json
cd ../..

printf '\n== Its script, repaired here: the plan, the repair of a copy, the check again, and the way back\n'
rm -rf demo-out
mkdir -p demo-out
cp examples/planted/train.py demo-out/
printf '[project]\nname = "demo"\nversion = "0"\n' >demo-out/pyproject.toml
cd demo-out
script="--select QD1,QD3,QD6 --offline"
# shellcheck disable=SC2086
show qlora-doctor fix train.py $script
# shellcheck disable=SC2086
show qlora-doctor fix train.py $script --apply --unsafe
# shellcheck disable=SC2086
show qlora-doctor check train.py $script
show qlora-doctor undo
cd ..
cmp examples/planted/train.py demo-out/train.py
printf 'byte for byte as before\n'

if [ "$stack" = train ]; then
    printf '\n== The loader: three tiny models with planted faults, in real NF4\n'
    show qlora-core demo
    printf '\n== The trainer: a run, a run that is killed and goes on, and one that is stopped before it turns NaN\n'
    sh examples/train.sh "$bin" demo-out/train
else
    printf '\n(qlora-core needs Python 3.11 or newer; its demo is left out here)\n'
fi
