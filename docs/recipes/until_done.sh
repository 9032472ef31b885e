#!/bin/bash
# autolora batch, again and again while there is more to do:  until_done.sh job.py --out gs://bucket/anna
# 75: stopped; 134: another process vanished; 137, 143: killed, before it could say more.
for _ in {1..20}; do
    autolora batch "$@"
    code=$?
    case $code in
        75 | 134 | 137 | 143) sleep "${PAUSE:-10}" ;;
        *) exit $code ;;
    esac
done
exit $code
