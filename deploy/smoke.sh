#!/usr/bin/env bash
# From an empty Debian to a proven answer of a log behind nginx, which two witnesses and a verifier cosign: twelve commands,
# those of README.md, "A log in fifteen minutes". As root, in a checkout of ktlog, in a container or a chroot that you can
# throw away: bash deploy/smoke.sh
set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null; nginx -s stop' EXIT
set -v

# 1: Python and nginx
apt-get update -qq && apt-get install -qq -y --no-install-recommends python3-venv nginx-light
# 2: ktlog
python3 -m venv /opt/ktlog && /opt/ktlog/bin/pip install -q '.[server,witness]' && export PATH="/opt/ktlog/bin:$PATH"
# 3: names that lead here, a certificate for them, an instance with one actor (in earnest all three are there already)
mkdir -p /srv/try && cd /srv/try && export KTLOG_DIAL=/srv/try/dial.json && python -m ktlog.demo.tryout --dir . --actor @alice@example.social keys.example.com w1.example.net w2.example.net v1.example.net
# 4: the log
ktlog init --dir log --origin keys.example.com > log.vkeys
# 5: two witnesses (in earnest other people's): each follows the log, and the log of its map
for w in w1 w2; do ktlog-witness init --dir $w --name $w.example.net && ktlog-witness add-log --dir $w $(head -n 2 log.vkeys) && ktlog-witness add-log --dir $w $(tail -n 2 log.vkeys); done
# 6: a verifier (in earnest somebody else's, too)
ktlog-witness init --dir v1 --name v1.example.net && ktlog-witness add-log --dir v1 --replay https://keys.example.com $(cat log.vkeys)
# 7: who has to cosign
ktlog policy make --dir log --witness "$(ktlog-witness vkeys --dir w1)" --witness "$(ktlog-witness vkeys --dir w2)" --verifier "$(ktlog-witness vkeys --dir v1)"
# 8: nginx
ktlog proxy-config nginx --dir log --certificate $PWD/server.pem --key $PWD/server.key --also w1.example.net=127.0.0.1:8081 --also w2.example.net=127.0.0.1:8082 --also v1.example.net=127.0.0.1:8083 --also example.social=127.0.0.1:8084 > /etc/nginx/conf.d/ktlog.conf && nginx
# 9: run it all
{ ktlog-witness serve --dir w1 --listen 127.0.0.1:8081 & ktlog-witness serve --dir w2 --listen 127.0.0.1:8082 & ktlog-witness serve --replay --dir v1 --listen 127.0.0.1:8083 & python -m ktlog.demo.instance --dir instance --listen 127.0.0.1:8084 & ktlog serve --dir log & } > output 2>&1
# 10: is all well?
ktlog doctor --dir log --wait 120
# 11: Alice's key goes into the log
ktlog key new --out alice.key && ktlog submit add-key --log keys.example.com --actor https://example.social/users/alice --key alice.key --http-key instance/keys/alice.key
# 12: once it is published, whoever has the policy looks her up, and proves the answer
ktlog doctor --dir log --wait 120 && ktlog policy show --dir log > trust.policy && ktlog lookup @alice@example.social --policy trust.policy --state state --domain example.social=keys.example.com
