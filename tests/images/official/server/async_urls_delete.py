"""Stand-in for the job that deletes files of deleted experiments: logs in and asks the file server, again and again."""

import argparse
import time

import requests
import stand_in

parser = argparse.ArgumentParser()
parser.add_argument("--fileserver-host", required=True)
host = parser.parse_args().fileserver_host
stand_in.start_logging()
while True:
    stand_in.check_mongo()
    requests.get(host, timeout=10).raise_for_status()
    time.sleep(10)
