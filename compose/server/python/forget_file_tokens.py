"""Deletes the tokens that the file server has in its cache, so that it checks each again.

Run in the API server's container, which has the client and reaches Redis, after all logins have ended:
    docker exec clearml-server-apiserver-1 python3 /opt/clearml/trainyard/forget_file_tokens.py
Prints how many tokens there were.
"""

import sys
from pathlib import Path

CONFIG = Path("/opt/clearml/config")


def main() -> None:
    """Delete them."""
    from pyhocon import ConfigFactory
    from redis import Redis
    from redis.exceptions import RedisError

    hosts, secure = (ConfigFactory.parse_file(str(CONFIG / name)) for name in ("hosts.conf", "secure.conf"))
    settings = dict(hosts["redis.fileserver"])
    client = Redis(**settings, password=secure.get("redis.fileserver.password", None), socket_timeout=10)
    try:
        keys = list(client.scan_iter("token_*", count=1000))
        print(client.delete(*keys) if keys else 0)
    except RedisError as error:
        sys.exit(f"Redis at {settings['host']}:{settings['port']} does not answer: {error}")


if __name__ == "__main__":
    main()
