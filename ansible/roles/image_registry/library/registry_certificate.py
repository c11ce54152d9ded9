#!/usr/bin/python
# Part of Trainyard.
"""Make an authority and a certificate by it for one address, and make them anew before they end."""

from __future__ import annotations

import ipaddress
import os
import secrets
import stat
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: registry_certificate
short_description: Make an authority and a certificate by it for one address, and make them anew before they end
description:
  - Needs openssl on the host, and no Python library. The keys are made on the host and are told to nobody.
  - The certificate is made anew when it ends soon, is for another address, is not by this authority or does not fit its
    key. The authority is made anew, and the certificate with it, when it would end before a new certificate.
options:
  address:
    description: Name or IPv4 address that the certificate is for.
    type: str
    required: true
  authority:
    description: Folder of the authority's C(cert.pem) and C(key.pem); root alone may read the key.
    type: path
    required: true
  folder:
    description: Folder of the certificate's C(cert.pem) and C(key.pem). It must exist.
    type: path
    required: true
  owner:
    description: Number of the user and the group that own the certificate and its key.
    type: int
    required: true
  days:
    description: Days that a certificate is good for.
    type: int
    required: true
  renew_days:
    description: Days before its end from which a certificate is made anew.
    type: int
    required: true
"""

RETURN = r"""
certificate:
  description: The certificate, empty when a check would make one.
  type: str
  returned: always
made:
  description: What was made, C(authority) and C(certificate).
  type: list
  returned: always
"""

AUTHORITY_DAYS = 3650
DAY = 86400
KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
CONFIG = """[req]
prompt = no
distinguished_name = name
[name]
O = Trainyard
CN = {name}
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {kind}:{address}
"""


class Openssl:
    """Runs openssl, and fails the module when it fails."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._program = module.get_bin_path("openssl", required=True)

    def says(self, *arguments: str | Path) -> str | None:
        """Give the output, None when it exits with an error."""
        code, output, _ = self._module.run_command([self._program, *map(str, arguments)])
        return output if code == 0 else None

    def run(self, *arguments: str | Path) -> None:
        """Let it do something."""
        code, _, error = self._module.run_command([self._program, *map(str, arguments)])
        if code != 0:
            self._module.fail_json(msg=f"openssl {arguments[0]}: {error.strip()}")


class Pair:
    """A certificate and its key in a folder."""

    def __init__(self, openssl: Openssl, folder: Path) -> None:
        self._openssl = openssl
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"

    def is_good(self, days: int) -> bool:
        """Tell whether both are there, fit each other, and last for more than some days."""
        if not (self.certificate.is_file() and self.key.is_file()):
            return False
        public = self._openssl.says("x509", "-in", self.certificate, "-noout", "-pubkey")
        return (
            public is not None
            and public == self._openssl.says("pkey", "-in", self.key, "-pubout")
            and self._openssl.says("x509", "-in", self.certificate, "-noout", "-checkend", str(days * DAY)) is not None
        )

    def is_for(self, address: str, kind: str) -> bool:
        """Tell whether the certificate is for an address."""
        flag = "-checkip" if kind == "IP" else "-checkhost"
        said = self._openssl.says("x509", "-in", self.certificate, "-noout", flag, address)
        return said is not None and "does match" in said

    def is_by(self, authority: Pair) -> bool:
        """Tell whether an authority made the certificate."""
        return self._openssl.says("verify", "-CAfile", authority.certificate, self.certificate) is not None


def kind_of(address: str) -> str:
    """Give openssl's word for a name or an IP address."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return "DNS"
    return "IP"


def own(path: Path, owner: int, mode: int) -> bool:
    """Give a file its owner and mode; tell whether it had others."""
    facts = path.stat()
    if (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (owner, owner, mode):
        return False
    os.chown(path, owner, owner)
    path.chmod(mode)
    return True


def put(new: Path, pair: Pair, owner: int) -> None:
    """Move a new pair into its place. One that breaks off between the two does not fit: the next run makes another."""
    for name, target in (("key.pem", pair.key), ("cert.pem", pair.certificate)):
        own(new / name, owner, 0o400)
        (new / name).replace(target)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "authority": {"type": "path", "required": True},
            "folder": {"type": "path", "required": True},
            "owner": {"type": "int", "required": True},
            "days": {"type": "int", "required": True},
            "renew_days": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    os.umask(0o077)
    openssl = Openssl(module)
    home, address = Path(given["authority"]), given["address"]
    authority, server, kind = Pair(openssl, home), Pair(openssl, Path(given["folder"])), kind_of(address)
    made = [] if authority.is_good(given["days"]) else ["authority"]
    if made or not (server.is_good(given["renew_days"]) and server.is_for(address, kind) and server.is_by(authority)):
        made.append("certificate")
    if module.check_mode:
        module.exit_json(
            changed=bool(made), made=made, certificate="" if made else server.certificate.read_text(encoding="ascii")
        )
    changed = bool(made)
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        # Beside their places, on the same disk: each is moved there whole.
        with tempfile.TemporaryDirectory(dir=home) as place:
            new = Path(place)
            key, certificate, request, config = (new / name for name in ("key.pem", "cert.pem", "request", "config"))
            if "authority" in made:
                config.write_text(CONFIG.format(name="Trainyard registry authority", kind=kind, address=address))
                arguments = ["-x509", "-extensions", "authority", "-days", str(AUTHORITY_DAYS), "-out", certificate]
                openssl.run("req", "-config", config, *KEY, "-keyout", key, *arguments)
                put(new, authority, 0)
            if "certificate" in made:
                config.write_text(CONFIG.format(name="Trainyard registry", kind=kind, address=address))
                openssl.run("req", "-config", config, *KEY, "-keyout", key, "-new", "-out", request)
                signer = [
                    "-CA",
                    authority.certificate,
                    "-CAkey",
                    authority.key,
                    "-set_serial",
                    f"0x{secrets.token_hex(15)}",
                ]
                arguments = [
                    "-extfile",
                    config,
                    "-extensions",
                    "server",
                    "-days",
                    str(given["days"]),
                    "-out",
                    certificate,
                ]
                openssl.run("x509", "-req", "-in", request, *signer, *arguments)
                put(new, server, given["owner"])
        changed |= own(home, 0, 0o700)
        for pair, owner in ((authority, 0), (server, given["owner"])):
            for path in (pair.certificate, pair.key):
                changed |= own(path, owner, 0o400)
        text = server.certificate.read_text(encoding="ascii")
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(changed=changed, made=made, certificate=text)


if __name__ == "__main__":
    main()
