"""Who may come in: passwords, key pairs, tokens, roles, and what a guesser meets."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import bcrypt
import jwt
import pytest
from starlette.testclient import TestClient
from trainyard_lite._app import create_state
from trainyard_lite._errors import ApiError
from trainyard_lite._http import create_api
from trainyard_lite._rpc import State
from trainyard_lite._settings import COMPANY_ID, ConfigError, Settings, load_settings, user_id

TOKEN_SECRET = "t" * 40
PASSWORD = "right-password"


def write_config(folder: Path, *, users: str | None = None, credentials: str = "") -> Path:
    """Write the three HOCON files that the official server reads too."""
    folder.mkdir(parents=True, exist_ok=True)
    hashed = base64.b64encode(bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4))).decode()
    users = users if users is not None else f'{{username: "admin", password: "{hashed}", name: "Ad Min"}}'
    (folder / "apiserver.conf").write_text(
        f"auth {{ fixed_users {{ enabled: true, pass_hashed: true, users: [ {users} ] }} }}"
    )
    (folder / "secure.conf").write_text(
        f'auth {{ token_secret: "{TOKEN_SECRET}" }}\n'
        "credentials {\n"
        '  apiserver { role: "system", user_key: "SYSKEY", user_secret: "SYSSECRET" }\n'
        '  agent_a { role: "user", display_name: "agent a", user_key: "AGENTKEY", user_secret: "AGENTSECRET" }\n'
        f"  {credentials}\n}}\n"
    )
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(write_config(tmp_path / "config"), tmp_path / "data")


@pytest.fixture
def state(settings: Settings) -> State:
    return create_state(settings)


@pytest.fixture
def api(state: State) -> TestClient:
    return TestClient(create_api(state))


def post(api: TestClient, name: str, data: object = None, **options: object) -> tuple[int, dict[str, object]]:
    api.cookies.clear()
    answer = api.post(f"/v2.30/{name}", json=data or {}, **options)  # type: ignore[arg-type]
    return answer.status_code, answer.json()


def login(api: TestClient, name: str = "admin", secret: str = PASSWORD) -> str:
    status, body = post(api, "auth.login", auth=(name, secret))
    assert status == 200, body
    return str(body["data"]["token"])  # type: ignore[index]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("name", "secret"), [("admin", PASSWORD), ("AGENTKEY", "AGENTSECRET"), ("SYSKEY", "SYSSECRET")]
)
def test_people_and_accounts_log_in(api: TestClient, name: str, secret: str) -> None:
    token = login(api, name, secret)
    status, body = post(api, "users.get_current_user", headers=bearer(token))
    assert status == 200
    expected = {"admin": user_id("admin"), "AGENTKEY": "__agent_a__", "SYSKEY": "__apiserver__"}[name]
    assert body["data"]["user"]["id"] == expected  # type: ignore[index]


@pytest.mark.parametrize(
    ("headers", "subcode"),
    [
        ({}, 20),
        ({"Authorization": "Digest abc"}, 10),
        ({"Authorization": "Basic !!!"}, 21),
        ({"Authorization": "Basic " + base64.b64encode(b"admin:wrong").decode()}, 22),
        ({"Authorization": "Bearer rubbish"}, 30),
        ({"Authorization": "Bearer"}, 30),
        ({"Cookie": "clearml_token_basic=rubbish"}, 30),
    ],
)
def test_401_in_the_envelope(api: TestClient, headers: dict[str, str], subcode: int) -> None:
    status, body = post(api, "users.get_all", headers=headers)
    meta = body["meta"]
    assert (status, meta["result_code"], meta["result_subcode"]) == (401, 401, subcode)  # type: ignore[index]
    assert body["data"] == {}


def test_forged_expired_and_foreign_tokens_are_refused(api: TestClient) -> None:
    identity = {"user": "__apiserver__", "role": "system", "company": "x"}
    good = {"identity": identity, "exp": int(time.time()) + 60, "auth_type": "Bearer"}
    forged = [
        jwt.encode(good, "another-secret-another-secret-another", algorithm="HS256"),
        jwt.encode(good, None, algorithm="none"),
        jwt.encode(good | {"exp": int(time.time()) - 1}, TOKEN_SECRET, algorithm="HS256"),
        jwt.encode({"exp": good["exp"]}, TOKEN_SECRET, algorithm="HS256"),
        jwt.encode(good | {"identity": {"user": "nobody"}}, TOKEN_SECRET, algorithm="HS256"),
    ]
    for token in forged:
        status, body = post(api, "users.get_all", headers=bearer(token))
        assert (status, body["meta"]["result_subcode"]) == (401, 30), token  # type: ignore[index]


def test_the_token_tells_clients_what_the_server_can_do(api: TestClient) -> None:
    claims = jwt.decode(login(api), TOKEN_SECRET, algorithms=["HS256"])
    assert claims["api_version"] == "2.34"  # without it the SDK believes in 2.9
    assert (claims["server_version"], claims["feature_set"]) == ("2.3.0", "basic")


def test_the_role_is_looked_up_not_believed(api: TestClient) -> None:
    identity = {"user": "__agent_a__", "role": "system"}
    token = jwt.encode({"identity": identity, "exp": int(time.time()) + 60}, TOKEN_SECRET, algorithm="HS256")
    status, body = post(api, "server.config", headers=bearer(token))
    assert (status, body["meta"]["result_subcode"]) == (403, 20)  # type: ignore[index]


def test_logout_ends_the_session_for_good(api: TestClient, settings: Settings, state: State) -> None:
    token = login(api)
    assert post(api, "auth.logout", headers=bearer(token))[0] == 200
    assert post(api, "users.get_all", headers=bearer(token))[0] == 401
    state.db.close()
    again = TestClient(create_api(create_state(settings)))  # a restart remembers
    assert post(again, "users.get_all", headers=bearer(token))[0] == 401


def test_a_token_that_was_good_once_is_checked_again(api: TestClient, state: State) -> None:
    """Its signature is remembered; that it has ended, was revoked, or is of nobody any more, is not."""
    person = state.auth.check_secret("admin", PASSWORD)
    tokens = [state.auth.make_token(person, 1000) for _ in range(3)]
    for token in tokens * 2:
        assert state.auth.read_token(token) == person
    headers = {"authorization": f"Bearer {tokens[0]}"}
    assert post(api, "auth.logout", headers=headers)[0] == 200
    assert post(api, "users.get_current_user", headers=headers)[0] == 401
    forged = tokens[1][:-2] + ("AA" if tokens[1][-2:] != "AA" else "BB")
    assert post(api, "users.get_current_user", headers={"authorization": f"Bearer {forged}"})[0] == 401
    claims = {"identity": person.claim(), "exp": int(time.time()) - 1}
    ended = jwt.encode(claims, TOKEN_SECRET, algorithm="HS256")
    state.auth._verified[ended] = claims  # it was read before it ended
    with pytest.raises(ApiError):
        state.auth.read_token(ended)
    with state.db.write() as db:
        db.execute("DELETE FROM user WHERE id = ?", (person.user,))
    with pytest.raises(ApiError):
        state.auth.read_token(tokens[2])


def test_the_memory_of_good_tokens_is_bounded(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainyard_lite._auth._MAX_VERIFIED", 4)
    person = state.auth.check_secret("admin", PASSWORD)
    tokens = [state.auth.make_token(person) for _ in range(12)]
    for token in tokens * 2:
        assert state.auth.read_token(token) == person
    assert len(state.auth._verified) <= 4


def test_cookie_of_login_works_and_is_httponly(api: TestClient) -> None:
    answer = api.post("/auth.login", auth=("admin", PASSWORD))
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "samesite=lax" in answer.headers["set-cookie"].lower()
    assert api.get("/users.get_current_user").status_code == 200


def test_key_pairs_are_made_listed_and_revoked(api: TestClient) -> None:
    headers = bearer(login(api))
    _, body = post(api, "auth.create_credentials", {"label": "laptop"}, headers=headers)
    pair = body["data"]["credentials"]  # type: ignore[index]
    assert login(api, pair["access_key"], pair["secret_key"])
    listed = post(api, "auth.get_credentials", headers=headers)[1]["data"]["credentials"]  # type: ignore[index]
    assert [c["label"] for c in listed] == ["laptop"]
    assert listed[0]["last_used"]
    assert "secret_key" not in listed[0]
    post(api, "auth.edit_credentials", {"access_key": pair["access_key"], "label": "desk"}, headers=headers)
    assert post(api, "auth.revoke_credentials", {"access_key": pair["access_key"]}, headers=headers)[0] == 200
    assert post(api, "auth.login", auth=(pair["access_key"], pair["secret_key"]))[0] == 401
    assert post(api, "auth.revoke_credentials", {"access_key": pair["access_key"]}, headers=headers)[0] == 400


def test_secrets_are_not_kept_in_clear(api: TestClient, settings: Settings, state: State) -> None:
    _, body = post(api, "auth.create_credentials", headers=bearer(login(api)))
    secret = body["data"]["credentials"]["secret_key"]  # type: ignore[index]
    state.db.close()
    stored = settings.database.read_bytes()
    assert secret.encode() not in stored
    assert b"AGENTSECRET" not in stored


def test_service_accounts_cannot_mint_keys(api: TestClient) -> None:
    status, body = post(api, "auth.create_credentials", auth=("AGENTKEY", "AGENTSECRET"))
    assert (status, body["meta"]["result_subcode"]) == (400, 301)  # type: ignore[index]


def test_guessing_is_slowed_for_the_guesser_only(api: TestClient) -> None:
    statuses = [post(api, "auth.login", auth=("admin", f"guess{n}"))[0] for n in range(8)]
    assert statuses[:5] == [401] * 5
    assert 429 in statuses[5:]
    api.cookies.clear()
    answer = api.post("/auth.login", auth=("admin", PASSWORD))
    assert answer.status_code == 429  # even the right password has to wait: a guesser learns nothing
    assert int(answer.headers["retry-after"]) >= 1
    assert login(api, "AGENTKEY", "AGENTSECRET")


def test_a_person_who_left_the_file_is_gone_after_a_restart(tmp_path: Path, api: TestClient, state: State) -> None:
    token = login(api)
    _, body = post(api, "auth.create_credentials", headers=bearer(token))
    pair = body["data"]["credentials"]  # type: ignore[index]
    state.db.close()
    config = write_config(tmp_path / "config", users="")
    again = TestClient(create_api(create_state(load_settings(config, tmp_path / "data"))))
    assert post(again, "auth.login", auth=("admin", PASSWORD))[0] == 401
    assert post(again, "auth.login", auth=(pair["access_key"], pair["secret_key"]))[0] == 401
    assert post(again, "users.get_all", headers=bearer(token))[0] == 401


@pytest.mark.parametrize(
    ("users", "credentials", "words"),
    [
        ('{username: "a", password: "x", role: "admin"}', "", ["apiserver.conf", "users[0]", "'role'"]),
        ('{username: "a"}', "", ["users[0]", "needs username and password"]),
        ('{username: "a", password: "x"}, {username: "a", password: "y"}', "", ["'a' twice"]),
        (None, 'bad { role: "root", user_key: "k", user_secret: "s" }', ["credentials.bad.role", "'root'", "admin"]),
        ("{{{", "", ["apiserver.conf", "cannot be read"]),
    ],
)
def test_bad_configuration_is_named(tmp_path: Path, users: str | None, credentials: str, words: list[str]) -> None:
    config = write_config(tmp_path / "config", users=users, credentials=credentials)
    with pytest.raises(ConfigError) as error:
        load_settings(config, tmp_path / "data")
    for word in words:
        assert word in str(error.value)


def test_missing_secret_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config")
    (config / "secure.conf").write_text("auth { token_secret: short }")
    with pytest.raises(ConfigError, match=r"auth\.token_secret"):
        load_settings(config, tmp_path / "data")
    (config / "secure.conf").unlink()
    with pytest.raises(ConfigError, match=r"secure\.conf is missing"):
        load_settings(config, tmp_path / "data")


def test_an_account_made_by_the_system_stays_and_has_keys_of_its_own(
    api: TestClient, settings: Settings, state: State
) -> None:
    system = bearer(login(api, "SYSKEY", "SYSSECRET"))
    wish = {"name": "agent gpu01", "email": "gpu01@nodes.invalid", "company": COMPANY_ID}
    assert post(api, "auth.create_user", wish, headers=bearer(login(api)))[0] == 403, "people cannot"
    status, body = post(api, "auth.create_user", wish, headers=system)
    assert status == 200
    node = body["data"]["id"]  # type: ignore[index]
    status, body = post(api, "auth.create_user", wish, headers=system)
    assert (status, body["meta"]["result_subcode"]) == (400, 801)  # type: ignore[index]
    status, body = post(api, "auth.get_token_for_user", {"user": node}, headers=system)
    token = body["data"]["token"]  # type: ignore[index]
    status, body = post(api, "auth.create_credentials", {"label": "node"}, headers=bearer(token))
    pair = body["data"]["credentials"]  # type: ignore[index]
    state.db.close()
    again = TestClient(create_api(create_state(settings)))
    own = bearer(login(again, pair["access_key"], pair["secret_key"]))
    status, body = post(again, "users.get_current_user", headers=own)
    assert body["data"]["user"]["name"] == "agent gpu01"  # type: ignore[index]
