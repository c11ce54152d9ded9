#!/usr/bin/python3
"""Stand-in for mongosh, which no wheel has: understands --eval 'db.adminCommand("ping").ok' and nothing else."""

import sys

from pymongo import MongoClient

if not any("ping" in argument for argument in sys.argv):
    sys.exit("this stand-in for mongosh only pings")
print(int(MongoClient("127.0.0.1", serverSelectionTimeoutMS=3000).admin.command("ping")["ok"]))
