"""Changes the passwords of this host's own databases; the role pipes it the old ones and the new ones.

Run in the API server's container, which has the clients and reaches the databases:
    docker exec -i clearml-server-apiserver-1 python3 /opt/clearml/trainyard/change_passwords.py <passwords.json
with {"mongo": {"user", "old", "new"}, "elasticsearch": {"user", "old", "new"}}, either of which may be missing.
Prints what it changed. A second run finds the new password and changes nothing,
so a run that broke off is simply repeated.
"""

import base64
import json
import sys
import urllib.error
import urllib.request


class RefusedError(Exception):
    """A database takes neither the old nor the new password, or does not answer."""


def mongo(user: str, old: str, new: str) -> bool:
    """Change the password of a user of MongoDB's admin database; tell whether that was necessary."""
    from pymongo import MongoClient
    from pymongo.errors import OperationFailure, PyMongoError

    refused = 18  # MongoDB's AuthenticationFailed
    for password in (new, old):
        client = MongoClient("mongo", username=user, password=password, serverSelectionTimeoutMS=10_000)
        try:
            client.admin.command("listDatabases")
            if password == new:
                return False
            client.admin.command("updateUser", user, pwd=new)
            return True
        except OperationFailure as error:
            if error.code != refused:
                raise RefusedError(f"MongoDB: {error.details.get('errmsg') if error.details else error.code}") from None
        except PyMongoError as error:
            raise RefusedError(f"MongoDB does not answer: {type(error).__name__}") from None
    raise RefusedError(
        "MongoDB takes neither the password that this host's secrets/mongo_password holds nor the new one"
    )


def elasticsearch(user: str, old: str, new: str) -> bool:
    """Change the password of a user of Elasticsearch; tell whether that was necessary."""

    def ask(password: str, method: str, path: str, body: "dict[str, str] | None" = None) -> int:
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        request = urllib.request.Request(
            f"http://elasticsearch:9200{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Authorization": f"Basic {pair}", "Content-Type": "application/json"},
        )
        # The database is a neighbour; a proxy is not asked.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            return int(opener.open(request, timeout=30).status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError as error:
            raise RefusedError(f"Elasticsearch does not answer: {type(error).__name__}") from None

    if ask(new, "GET", "/") == 200:
        return False
    status = ask(old, "POST", f"/_security/user/{user}/_password", {"password": new})
    if status != 200:
        raise RefusedError(
            f"Elasticsearch answers {status}: it takes neither the password that this host's secrets/elastic_password "
            "holds nor the new one"
        )
    return True


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    try:
        for name, change in (("mongo", mongo), ("elasticsearch", elasticsearch)):
            if name in wanted and change(**wanted[name]):
                print(name, flush=True)
    except RefusedError as error:
        sys.exit(str(error))
