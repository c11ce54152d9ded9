#!/usr/bin/env bash
# Puts a folder into a bare git repository: example-repository.sh FOLDER REPOSITORY.
# A folder that has not changed makes no commit, and the same folder makes the same commit everywhere; older commits stay, so that
# experiments of the past still find theirs.
set -euo pipefail
folder=$(cd "$1" && pwd)
export GIT_DIR=$2
export GIT_CONFIG_NOSYSTEM=1 HOME=/nonexistent
export GIT_AUTHOR_NAME=Trainyard GIT_AUTHOR_EMAIL=trainyard@localhost GIT_AUTHOR_DATE='2026-01-01T00:00:00Z'
export GIT_COMMITTER_NAME=Trainyard GIT_COMMITTER_EMAIL=trainyard@localhost GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'

if [ ! -e "$GIT_DIR/HEAD" ]; then
    git init --quiet --bare --initial-branch=main "$GIT_DIR"
fi
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
export GIT_INDEX_FILE=$temporary/index
(cd "$folder" && git --work-tree=. add --all -- . ':(exclude,glob)**/__pycache__/**')
tree=$(git write-tree)
parent=$(git rev-parse --quiet --verify refs/heads/main || true)
if [ -n "$parent" ] && [ "$(git rev-parse "$parent^{tree}")" = "$tree" ]; then
    echo unchanged
    exit 0
fi
commit=$(git commit-tree "$tree" ${parent:+-p "$parent"} -m "Example training")
git update-ref refs/heads/main "$commit"
echo "updated to $commit"
