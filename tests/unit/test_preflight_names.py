# ruff: noqa: E501 - a case is a line

"""Names, files and messages of an inventory: every mistake gets a sentence that tells where, and what is legal passes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import inventories
import pytest
import yaml
from ansible.constants import DEFAULT_VAULT_ID_MATCH
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "ansible/plugins/module_utils"))

import trainyard_names  # noqa: E402

HOSTS = """\
all:
  children:
    clearml_server:
      hosts:
        server:
    clearml_nodes:
      hosts:
        train01.example.org:
          clearml_node_name: train01
        train02.example.org:
          clearml_node_name: train02
    clearml_registry:
      hosts:
        server:
"""
SITE = "group_vars/all/site.yml"
Files = dict[str, str | bytes]
Case = tuple[str, Files, str | list[str]]


def nodes(text: str) -> str:
    """Return hosts with one more line below the first node."""
    return HOSTS.replace("name: train01\n", f"name: train01\n          {text}\n")


# What it is, its files (a text that starts with + is added to the file), the words of the message. {} is what passes.
VARIABLES: list[Case] = [
    ("a letter swapped", {SITE: "+clearml_agent_wokers: []\n"}, ["all: clearml_agent_wokers (group_vars/all/site.yml:", "write clearml_agent_workers"]),
    ("another spelling", {SITE: "+clearml_server_flavour: official\n"}, "write clearml_server_flavor"),
    ("a plural", {SITE: "+clearml_agents_gpus: auto\n"}, "write clearml_agent_gpus"),
    ("the prefix itself", {SITE: "+claerml_agent_gpus: auto\n"}, "write clearml_agent_gpus"),
    ("capitals", {SITE: "+CLEARML_AGENT_GPUS: auto\n"}, "write clearml_agent_gpus"),
    ("hyphens", {SITE: "+clearml-agent-gpus: auto\n"}, "write clearml_agent_gpus"),
    ("of the dataset cache", {SITE: "+dataset_cache_pth: /d\n"}, "write dataset_cache_path"),
    ("of the cache, short", {SITE: "+datset_cache_path: /d\n"}, "write dataset_cache_path"),
    ("of Docker", {SITE: "+docker_engine_htp_proxy: x\n"}, "write docker_engine_http_proxy"),
    ("of the registry", {SITE: "+image_registry_prt: 5000\n"}, "write image_registry_port"),
    ("of the GPUs", {SITE: "+nvidia_container_toolkit_cuda_version: '12.4'\n"}, "write nvidia_container_toolkit_cuda"),
    ("of the images", {SITE: "+perception_images_matrx: []\n"}, "write perception_images_matrix"),
    ("of preflight", {SITE: "+preflight_min_memory: 1\n"}, "write preflight_min_memory_mb"),
    ("of the site", {SITE: "+site_nme: x\n"}, "write site_name"),
    ("of the site, a hyphen", {SITE: "+site-name: x\n"}, "write site_name"),
    ("of people", {"group_vars/all/clearml_users.yml": "clearml_user: []\n"}, "write clearml_users"),
    ("of the vault", {SITE: "+vault_clearml_server_token_secrt: x\n"}, "write vault_clearml_server_token_secret"),
    ("a mirror", {SITE: "+registry_miror: https://m\n"}, "write registry_mirror"),
    ("an index", {SITE: "+pip_index_ulr: https://m\n"}, "write pip_index_url"),
    ("of ssh", {"hosts.yml": nodes("ansible_hots: 10.0.0.5")}, ["train01.example.org: ansible_hots (hosts.yml:10)", "write ansible_host"]),
    ("of ssh, its user", {"hosts.yml": nodes("ansible_usr: me")}, "write ansible_user"),
    ("of a connection", {"hosts.yml": nodes("ansible_conection: local")}, "write ansible_connection"),
    ("of sudo", {"hosts.yml": nodes("ansible_becom: true")}, "write ansible_become"),
    ("in hosts.yml", {"hosts.yml": nodes("clearml_agent_gpu: [0]")}, ["train01.example.org: clearml_agent_gpu (hosts.yml:10)", "clearml_agent_gpus"]),
    ("in vars of all", {"hosts.yml": HOSTS + "  vars:\n    clearml_servr_host: x\n"}, ["hosts.yml:16", "clearml_server_host"]),
    ("in vars of a group", {"hosts.yml": HOSTS.replace("    clearml_nodes:\n", "    clearml_nodes:\n      vars: {clearml_agent_gpuss: auto}\n")}, "write clearml_agent_gpus"),
    ("the node's name", {"hosts.yml": nodes("clearml_nodename: a")}, "write clearml_node_name"),
    ("in host_vars", {"host_vars/train01.example.org.yml": "\nclearml_agent_gpss: auto\n"}, ["train01.example.org: clearml_agent_gpss (host_vars/train01.example.org.yml:2)", "clearml_agent_gpus"]),
    ("in a folder of host_vars", {"host_vars/server/a.yml": "clearml_server_hst: a\n"}, "server: clearml_server_hst (host_vars/server/a.yml:1)"),
    ("in a group's file", {"group_vars/clearml_nodes.yaml": "clearml_agent_rot: /x\n"}, "(group_vars/clearml_nodes.yaml:1)"),
    ("in JSON", {"group_vars/clearml_nodes.json": '{"clearml_agent_rot": "/x"}'}, "(group_vars/clearml_nodes.json:1)"),
    ("in a file without an ending", {"group_vars/clearml_nodes": "clearml_agent_rot: /x\n"}, "(group_vars/clearml_nodes:1)"),
    ("in a folder of a group", {"group_vars/clearml_nodes/deep/x.yml": "clearml_agent_rot: /x\n"}, "(group_vars/clearml_nodes/deep/x.yml:1)"),
    ("merged", {SITE: "+x: &a {clearml_agent_rot: /x}\n<<: *a\n"}, "clearml_agent_rot (group_vars/all/site.yml:"),
    ("in INI", {"hosts.yml": "", "hosts.ini": "[clearml_server]\ns\n[clearml_nodes]\na clearml_agent_gpu=0 # x\n[clearml_nodes:vars]\nclearml_agent_rot=/x\n"}, ["a: clearml_agent_gpu (hosts.ini:4)", "clearml_agent_rot (hosts.ini:6)"]),
    ("no name is like it", {SITE: "+clearml_agent_zzzqqq: 1\n"}, "Names that start with clearml_agent_ are Trainyard's"),
    ("an old prefix", {SITE: "+clearml_worker_count: 2\n"}, "Names that start with clearml_ are Trainyard's"),
    ("an internal name", {SITE: "+__clearml_agent_revision: x\n"}, "is not a setting; remove it"),
    ("a fact of a role", {SITE: "+clearml_server_description: {}\n"}, "is not a setting; remove it"),
    ("read in a template", {SITE: '+site_no_proxy2: ""\nmine: "{{ clearml_server_hst }}"\n'}, ["site_no_proxy2", "mine (group_vars/all/site.yml:", "reads clearml_server_hst, which is not defined; write clearml_server_host"]),
    ("read from the vault", {SITE: "+mine: \"{{ vault_clearml_admin_pasword | default('') }}\"\n"}, "reads vault_clearml_admin_pasword, which is not defined; write vault_clearml_admin_password"),
    ("read in a list", {SITE: '+mine: [{a: "{{ site_nam }}"}]\n'}, "reads site_nam, which is not defined; write site_name"),
    ("a role's name", {SITE: "+dataset_cache: {path: /x}\n"}, "settings are variables of their own, not a mapping; write for example dataset_cache_"),
    ("another role's name", {SITE: "+image_registry:\n  port: 5000\n"}, "write for example image_registry_address"),
    ("a key of ssh", {"hosts.yml": nodes("ansible_key_file: ~/.ssh/x")}, ["train01.example.org: ansible_key_file (hosts.yml:10) is not known", "Names that start with ansible_ are Ansible's"]),
    ("of Ansible, nothing is like it", {"hosts.yml": nodes("ansible_zzz: x")}, "Names that start with ansible_ are Ansible's"),
    ("what Ansible works out", {SITE: "+inventory_hostname: x\n"}, "inventory_hostname (group_vars/all/site.yml:21) is a name that Ansible gives a value itself"),
    ("groups in group_vars", {SITE: "+groups: {a: [b]}\n"}, "is a name that Ansible gives a value itself"),
    ("the facts", {SITE: "+ansible_facts: {}\n"}, "is a name that Ansible gives a value itself"),
    ("a hyphen in a name of one's own", {SITE: "+my-var: x\n"}, "my-var (group_vars/all/site.yml:21) is not the name of a variable, so no template could read it; write my_var"),
    ("a dot in it", {SITE: "+my.var: x\n"}, "write my_var"),
    ("a digit first", {SITE: "+2nd: x\n"}, "2nd (group_vars/all/site.yml:21) is not the name of a variable"),
    ("another alphabet", {SITE: "+größe: x\n"}, "is not the name of a variable"),
    ("a word of Python's", {SITE: "+class: x\n"}, "is not the name of a variable"),
    ("a number", {SITE: "+5: x\n"}, "group_vars/all/site.yml:21 has the variable 5, which YAML reads as a number"),
    ("nothing", {SITE: "+null: x\n"}, "which YAML reads as nothing"),
    ("true", {SITE: "+on: x\n"}, "has the variable on, which YAML reads as true or false"),
    ("a knob that is gone", {SITE: "+preflight_node_group: x\n"}, "preflight_node_group (group_vars/all/site.yml:21) is not known"),
]  # fmt: skip

GROUPS: list[Case] = [
    ("a group, singular", {"hosts.yml": HOSTS.replace("clearml_nodes:", "clearml_node:")}, "the group clearml_node is not known, so nothing is deployed to its hosts; write clearml_nodes"),
    ("a group, swapped", {"hosts.yml": HOSTS.replace("clearml_nodes:", "claerml_nodes:")}, "write clearml_nodes"),
    ("a group, capitals", {"hosts.yml": HOSTS.replace("clearml_nodes:", "ClearML_nodes:")}, "write clearml_nodes"),
    ("a group, plural", {"hosts.yml": HOSTS.replace("clearml_server:", "clearml_servers:")}, ["write clearml_server", "the group clearml_server has 0 hosts"]),
    ("a group, of ours by name", {"hosts.yml": HOSTS.replace("clearml_nodes:", "clearml_workers:")}, "names that start with clearml_ are Trainyard's"),
    ("a group of another name", {"hosts.yml": HOSTS.replace("clearml_nodes:", "gpu:")}, ["train01.example.org: it is in none of the groups", "train02.example.org: it is in none"]),
    ("a group beside all", {"hosts.yml": HOSTS + "clearml_registri: {hosts: {server: {}}}\n"}, "write clearml_registry"),
    ("a group of INI", {"hosts.yml": "", "hosts": "[clearml_server]\ns\n[clearml_nods]\na\n"}, "write clearml_nodes"),
    ("a host in no group", {"hosts.yml": HOSTS + "  hosts:\n    train03:\n"}, "train03: it is in none of the groups clearml_server, clearml_nodes, clearml_registry"),
    ("a host spelled in two ways", {"hosts.yml": HOSTS + "  hosts:\n    train1.example.org: {ansible_host: 10.0.0.5}\n"}, ["train1.example.org: it is in none", "train01.example.org"]),
    ("no host", {"hosts.yml": "all: {}\n"}, "the inventory has no hosts; write hosts.yml"),
    ("groups without hosts", {"hosts.yml": "all:\n  children:\n    clearml_server:\n    clearml_nodes:\n      hosts:\n"}, "the inventory has no hosts"),
    ("an empty file", {"hosts.yml": ""}, "the inventory has no hosts"),
    ("a file with a comment", {"hosts.yml": "# later\n"}, "the inventory has no hosts"),
    ("no server", {"hosts.yml": "all: {children: {clearml_nodes: {hosts: {a: }}}}\n"}, "the group clearml_server has 0 hosts; write exactly one"),
    ("two servers", {"hosts.yml": HOSTS.replace("        server:\n", "        server:\n        other:\n", 1)}, "the group clearml_server has 2 hosts (other, server)"),
    ("a key of a group", {"hosts.yml": HOSTS.replace("hosts:", "host:", 1)}, ["hosts.yml:4 has host in the group clearml_server, which is not read; write hosts:"]),
    ("children", {"hosts.yml": HOSTS.replace("children:", "childs:", 1)}, "hosts.yml:2 has childs in the group all, which is not read; write children:"),
    ("vars", {"hosts.yml": HOSTS + "  var: {ansible_user: a}\n"}, "has var in the group all, which is not read; write vars:"),
    ("hosts as a list", {"hosts.yml": HOSTS.replace("hosts:\n        server:\n", "hosts: [server]\n", 1)}, "hosts.yml:4 has a list as hosts of the group clearml_server"),
    ("a host with a value", {"hosts.yml": HOSTS.replace("        server:\n", "        server: 10.0.0.5\n", 1)}, "hosts.yml:5 has the host server with a value; write its variables below it"),
    ("variables where groups are due", {"hosts.yml": HOSTS + "site_admin_user: me\n"}, "hosts.yml:15 has site_admin_user where a group is due"),
    ("a variable as a host", {"hosts.yml": HOSTS.replace("          clearml_node_name: train01\n", "        clearml_agent_gpus:\n")}, "hosts.yml:9 has clearml_agent_gpus as a host, which is a variable or group; correct the indentation"),
    ("a variable of ssh as a host", {"hosts.yml": HOSTS.replace("          clearml_node_name: train01\n", "        ansible_host:\n")}, "hosts.yml:9 has ansible_host as a host"),
    ("a group as a host", {"hosts.yml": HOSTS + "  hosts:\n    clearml_nodes:\n"}, "hosts.yml:16 has clearml_nodes as a host"),
    ("a word as a group", {"hosts.yml": HOSTS + "    hosts:\n      train03:\n"}, "hosts.yml:15 has hosts as a group, which is a word of the file; correct the indentation"),
    ("a host that is a number", {"hosts.yml": HOSTS.replace("train01.example.org", "42")}, "hosts.yml:8 has the host 42, which YAML reads as a number; write it in quotes: '42', or rename it"),
    ("a host that is false", {"hosts.yml": HOSTS.replace("train01.example.org", "no")}, "hosts.yml:8 has the host no, which YAML reads as true or false; write it in quotes: 'no'"),
    ("a host that is nothing", {"hosts.yml": HOSTS.replace("train01.example.org", "null")}, "which YAML reads as nothing"),
    ("a host that is a date", {"hosts.yml": HOSTS.replace("train01.example.org", "2026-11-26")}, "which YAML reads as a date"),
    ("hosts.yml, a word", {"hosts.yml": "server\n"}, "hosts.yml:1 does not hold groups"),
    ("a group that is a number", {"hosts.yml": HOSTS + "    7: {hosts: {server: }}\n"}, "has the group 7, which YAML reads as a number"),
    ("a range backwards", {"hosts.yml": HOSTS.replace("train02.example.org", "gpu[04:01]")}, "hosts.yml:10 has the hosts gpu[04:01], a range that ends before it starts, so there are none; write gpu[01:04]"),
    ("a host twice in INI", {"hosts.yml": "", "hosts.ini": "[clearml_server]\ns a=1\n[clearml_nodes]\nn\nm\nn b=2\n"}, "hosts.ini:6 has the host n a second time in [clearml_nodes] (first in line 4)"),
]  # fmt: skip

PATHS: list[Case] = [
    ("a group's file", {"group_vars/clearml_nods.yml": "a: 1\n"}, "group_vars/clearml_nods.yml is for the group clearml_nods, which the inventory does not have; rename it to clearml_nodes.yml"),
    ("a group's folder", {"group_vars/clearml-nodes/a.yml": "a: 1\n"}, "group_vars/clearml-nodes is for the group clearml-nodes, which the inventory does not have; rename it to clearml_nodes"),
    ("a group's file, no ending", {"group_vars/clearml_servr": "a: 1\n"}, "rename it to clearml_server, or remove it"),
    ("a role's file", {"group_vars/clearml_agent.yml": "a: 1\n"}, "is for the group clearml_agent, which the inventory does not have"),
    ("a file of nothing", {"group_vars/site.yml": "a: 1\n"}, "is for the group site, which the inventory does not have"),
    ("All", {"group_vars/All.yml": "a: 1\n"}, "rename it to all.yml"),
    ("a host's file among groups", {"group_vars/train01.example.org.yml": "a: 1\n"}, "it is a host: move it to host_vars/train01.example.org.yml"),
    ("a group without hosts", {"hosts.yml": HOSTS + "    gpu_large:\n", "group_vars/gpu_large.yml": "a: 1\n"}, "is for the group gpu_large, which has no hosts"),
    ("one of ours that is not there", {"hosts.yml": HOSTS.replace("    clearml_registry:\n      hosts:\n        server:\n", ""), "group_vars/clearml_registry.yml": "a: 1\n"}, "write the group with its hosts into hosts.yml"),
    ("a host's file", {"host_vars/train03.example.org.yml": "a: 1\n"}, "host_vars/train03.example.org.yml is for the host train03.example.org, which the inventory does not have"),
    ("a host's short name", {"host_vars/train01.yml": "a: 1\n"}, "rename it to train01.example.org.yml"),
    ("a host's folder", {"host_vars/train1.example.org/a.yml": "a: 1\n"}, "rename it to train01.example.org"),
    ("a group's file among hosts", {"host_vars/clearml_nodes.yml": "a: 1\n"}, "is for the host clearml_nodes, which the inventory does not have"),
    ("group_var", {"group_var/all.yml": "a: 1\n"}, "group_var is not read as variables: the folder must be called group_vars"),
    ("groupvars", {"groupvars/all.yml": "a: 1\n"}, "must be called group_vars"),
    ("group-vars", {"group-vars/all.yml": "a: 1\n"}, "must be called group_vars"),
    ("Group_Vars", {"Group_Vars/all.yml": "a: 1\n"}, "must be called group_vars"),
    ("hostvars", {"hostvars/server.yml": "a: 1\n"}, "must be called host_vars"),
    ("host_var", {"host_var/server.yml": "a: 1\n"}, "must be called host_vars"),
    ("variables beside hosts.yml", {"site.yml": "site_name: x\n"}, "site.yml:1 has site_name where a group is due; variables of all hosts go to group_vars/all/"),
    ("an ending", {"group_vars/all/site.yml.txt": "a: 1\n"}, "group_vars/all/site.yml.txt is not read: its name ends in .txt; rename it to one of .yml, .yaml, .json"),
    ("an ending, swapped", {"group_vars/all/more.ymal": "a: 1\n"}, "is not read: its name ends in .ymal"),
    ("an ending, short", {"group_vars/clearml_nodes.yam": "a: 1\n"}, "is not read: its name ends in .yam"),
    ("a file beside its folder", {"group_vars/all.yml": "a: 1\n"}, "group_vars/all.yml is not read, because the folder group_vars/all/ exists; move the file into it"),
    ("two files of a group", {"group_vars/clearml_nodes.yml": "a: 1\n", "group_vars/clearml_nodes.yaml": "b: 1\n"}, "group_vars/clearml_nodes.yaml is not read, because clearml_nodes.yml exists too"),
    ("a folder with a dot", {"group_vars/all/v1.2/a.yml": "a: 1\n"}, "a folder whose name has a dot is left out"),
    ("twice in a file", {SITE: "+site_name: two\n"}, "has site_name a second time (first in line 3): only the last one counts; keep one"),
    ("twice, deeper", {SITE: "+mine:\n  - {a: 1, a: 2}\n"}, "has mine.a a second time"),
    ("twice, hosts", {"hosts.yml": HOSTS.replace("train02.example.org", "train01.example.org")}, "hosts.yml:10 has all.children.clearml_nodes.hosts.train01.example.org a second time (first in line 8)"),
    ("twice, groups", {"hosts.yml": HOSTS.replace("clearml_registry", "clearml_server")}, "all.children.clearml_server a second time"),
    ("a file that is called host_vars", {"host_vars": "a: 1\n"}, "host_vars is a file; make it a folder, with HOST.yml in it"),
    ("variables in a folder of another name", {"vars/all.yml": "team_name: x\n"}, "vars/all.yml:1 has team_name where a group is due; variables of all hosts go to group_vars/all/"),
    ("TOML", {"group_vars/all/more.toml": "a = 1\n"}, "is not read: its name ends in .toml"),
    ("a program beside hosts.yml", {"check.py": "print\n"}, "check.py is read as a file of hosts, as every file here; move it to another folder"),
]  # fmt: skip

SPOILT: list[Case] = [
    ("an open bracket", {SITE: "+mine: [1\n"}, ["group_vars/all/site.yml:", "is not valid YAML", "correct this line or the one before it"]),
    ("a tab", {SITE: "+mine:\n\ta: 1\n"}, "indent with spaces, not with tabs"),
    ("a colon", {SITE: "+mine: a: b\n"}, "put a value that has ': ' in quotes"),
    ("an open quote", {SITE: "+mine: 'a\n"}, ["group_vars/all/site.yml:", "is not valid YAML"]),
    ("a template without quotes", {SITE: "+mine: {{ site_name }}\n"}, "put a value that starts with {{ in quotes"),
    ("more than a template without quotes", {SITE: "+mine: {{ site_name }}/a\n"}, "put a value that has {{ }} in quotes"),
    ("an indentation", {SITE: "+mine:\n    a: 1\n  b: 2\n"}, "is not valid YAML"),
    ("two documents", {SITE: "+---\nmine: 1\n"}, "remove the second ---"),
    ("an unknown anchor", {SITE: "+mine: *other\n"}, "is not valid YAML"),
    ("a list", {SITE: "- a\n- b\n"}, "group_vars/all/site.yml:1 holds a list; write variables, one a line, as name: value"),
    ("a text", {SITE: "site_name\n"}, "group_vars/all/site.yml:1 holds a text"),
    ("an equals sign", {SITE: "site_name=team\n"}, "holds a text; write variables, one a line, as name: value"),
    ("bytes", {SITE: b"site_name: \xff\xfe\n"}, ["group_vars/all/site.yml", "UTF-8"]),
    ("hosts.yml", {"hosts.yml": HOSTS + "  [\n"}, ["hosts.yml:", "is not valid YAML"]),
    ("hosts.yml, a list", {"hosts.yml": "- server\n"}, "hosts.yml:1 does not hold groups"),
    ("host_vars", {"host_vars/server.yml": "a: [\n"}, "host_vars/server.yml:2 is not valid YAML"),
    ("two files", {SITE: "+mine: [1\n", "group_vars/clearml_nodes.yml": "a: }\n"}, ["group_vars/all/site.yml:", "group_vars/clearml_nodes.yml:1 is not valid YAML"]),
    ("a vault, cut off", {"group_vars/all/vault.yml": "$ANSIBLE_VAULT;1.1;AES256\n333333\n"}, "group_vars/all/vault.yml is a damaged vault (cut off or edited by hand); restore it from a backup"),
    ("a vault, its first line", {"group_vars/all/vault.yml": "$ANSIBLE_VAULT;1.1;AES256\n"}, "group_vars/all/vault.yml is a damaged vault"),
    ("a vault, another password", {"group_vars/all/vault.yml": "OTHER"}, "group_vars/all/vault.yml cannot be decrypted: the vault password is not the one"),
    ("a vault, its last lines gone", {"group_vars/all/vault.yml": "HALF"}, "group_vars/all/vault.yml is a damaged vault"),
    ("a vault, spoilt inside", {"group_vars/all/vault.yml": "YAML"}, "group_vars/all/vault.yml:3 has encrypted content that is not valid YAML"),
    ("a vault, a list", {"group_vars/all/vault.yml": "LIST"}, "group_vars/all/vault.yml:1 holds a list"),
    ("a vaulted value", {SITE: "INLINE"}, ["group_vars/all/site.yml:1 has mine, which cannot be decrypted", "cannot be decrypted"]),
    ("a range without an end", {"hosts.yml": HOSTS.replace("train02.example.org", "gpu[a:]")}, "the hosts cannot be read: hosts.yml: host range must specify end value"),
    ("a range with a hyphen", {"hosts.yml": HOSTS.replace("train02.example.org", "gpu[01-04]")}, "host range must be begin:end"),
    ("a group in itself", {"hosts.yml": "all:\n  children:\n    clearml_server: {hosts: {s: }, children: {a: {children: {clearml_server: }}}}\n    clearml_nodes: {hosts: {n: }}\n"}, "creates a recursive dependency loop"),
    ("another ending of hosts.yml", {"hosts.yml": None, "hosts.yml.txt": HOSTS}, ["has no hosts file; write hosts.yml", "or rename hosts.yml.txt, which is not read"]),
    ("INI, a value with a space", {"hosts.yml": None, "hosts.ini": "[clearml_server]\ns x = a\n"}, "hosts.ini: Expected key=value host variable assignment, got: x"),
    ("INI, an open section", {"hosts.yml": None, "hosts.ini": "[clearml_server\ns\n"}, "hosts.ini: a line that starts with [ is not closed with ]"),
    ("INI, an unknown group", {"hosts.yml": None, "hosts.ini": "[clearml_server]\ns\n[clearml_nodes:children]\nnone\n"}, "includes undefined group 'none'"),
    ("INI, a template", {"hosts.yml": None, "hosts.ini": "[clearml_server]\ns x=\"{{ 'a' }}\"\n"}, "write it into group_vars"),
    ("INI by another name", {"hosts.yml": "# hosts\n[clearml_server]\ns\n"}, "hosts.yml is INI, and its name ends in .yml; rename it to hosts.ini"),
]  # fmt: skip

LEGAL: list[tuple[str, Files]] = [
    ("as it is", {}),
    ("variables of one's own", {SITE: '+team: vision\nour_gateway: 10.0.0.1\nmine: "{{ our_gateway }}"\napt_mirror_2: x\nhttp_proxy: ""\n'}),
    ("a secret of one's own", {SITE: '+mine: "{{ vault_bob_secret }}"\n', "group_vars/all/vault.yml": "vault_bob_secret: x\nvault_aws: y\n"}),
    ("variables of ssh", {"hosts.yml": nodes("ansible_host: 10.0.0.5\n          ansible_port: 2222\n          ansible_user: me\n          ansible_ssh_private_key_file: ~/.ssh/id\n          ansible_ssh_common_args: -J bastion\n          ansible_become_method: sudo\n          ansible_become_password: x\n          ansible_python_interpreter: /usr/bin/python3\n          ansible_docker_extra_args: x\n          ansible_ssh_pass: x")}),
    ("groups of one's own", {"hosts.yml": HOSTS + "    gpu_large:\n      hosts:\n        train01.example.org:\n    berlin:\n      children:\n        gpu_large:\n", "group_vars/gpu_large.yml": "clearml_agent_gpus: [0]\n", "group_vars/berlin/a.yml": "team: x\n"}),
    ("a group below ours", {"hosts.yml": HOSTS.replace("    clearml_registry:", "      children:\n        clearml_nodes_large:\n          hosts:\n            train03:\n    clearml_registry:"), "group_vars/clearml_nodes_large.yml": "clearml_agent_gpus: [0]\n"}),
    ("hosts below a group below ours", {"hosts.yml": HOSTS.replace("    clearml_registry:", "      children:\n        gpu_large:\n          hosts:\n            train03:\n    clearml_registry:")}),
    ("no nodes yet", {"hosts.yml": "all: {children: {clearml_server: {hosts: {server: }}, clearml_nodes: }}\n", "group_vars/clearml_nodes.yml": "clearml_agent_gpus: [0]\n"}),
    ("host_vars", {"host_vars/train01.example.org.yml": "clearml_agent_gpus: [0]\n", "host_vars/server/a.yml": "team: x\n", "host_vars/train02.example.org": "team: x\n"}),
    ("files that were put aside", {"group_vars/all/site.yml.bak": "[", "group_vars/all/site.yml~": "[", "group_vars/all/.site.yml.swp": "[", "group_vars/old.yml.disabled": "[", "group_vars/README.md": "x", "group_vars/all/site.yml.orig": "[", "notes.md": "x", "hosts.yml.bak": "["}),
    ("certificates and people's keys", {"files/registry.pem": "-----BEGIN CERTIFICATE-----\n", "users/alice/clearml.conf": "api {}\n"}),
    ("empty files", {"group_vars/clearml_nodes.yml": "", "host_vars/server.yml": "---\n", "group_vars/all/x.yml": "# nothing\n"}),
    ("anchors", {SITE: "+mine: &a {x: 1}\nours: {<<: *a, y: 2}\n"}),
    ("the same variable in two files", {"group_vars/clearml_nodes.yml": "clearml_agent_gpus: [0]\n", "host_vars/train01.example.org.yml": "clearml_agent_gpus: [1]\n"}),
    ("a host's name in quotes", {"hosts.yml": HOSTS.replace("train01.example.org", "'42'")}),
    ("ranges", {"hosts.yml": HOSTS.replace("train02.example.org", "gpu[01:04]").replace("clearml_node_name: train02", "ansible_user: me")}),
    ("INI", {"hosts.yml": None, "hosts.ini": "[clearml_server]\ns ansible_host=10.0.0.5\n[clearml_nodes]\na clearml_node_name=a\n[clearml_nodes:vars]\nansible_user=me\n[berlin:children]\nclearml_nodes\n"}),  # type: ignore[dict-item]
    ("what roles know of one another", {SITE: "+mine: \"{{ clearml_server_description.api_url | default('') }}{{ groups['clearml_nodes'] | map('extract', hostvars) | map(attribute='clearml_agent_x') | list }}\"\n"}),
    ("plugins' variables", {"hosts.yml": nodes("ansible_perl_interpreter: /usr/bin/perl\n          ansible_become_exe: sudo\n          ansible_shell_executable: /bin/sh\n          ansible_ssh_retries: 3\n          ansible_ssh_timeout: 9\n          ansible_remote_tmp: /tmp/x\n          ansible_winrm_transport: x\n          ansible_scp_extra_args: -O\n          ansible_pipelining: true")}),
    ("words of one's own", {SITE: "+site: berlin\nregistry_port: 1\ndocker_http_proxy: x\nusers: [a]\nenvironment: production\nagent_gpus: 2\nnode_name: x\n_private: 1\n"}),
    ("hosts in several files", {"more.yml": "clearml_nodes: {hosts: {train03: {clearml_node_name: train03}}}\n"}),
    ("hosts in a folder", {"hosts.yml": None, "hosts/a.yml": HOSTS}),  # type: ignore[dict-item]
    ("a port in a host's name", {"hosts.yml": HOSTS.replace("train02.example.org:", "train02.example.org:2222:")}),
    ("IPv6 hosts", {"hosts.yml": HOSTS.replace("train02.example.org", "'2001:db8::5'")}),
    ("ranges with steps and letters", {"hosts.yml": HOSTS.replace("train02.example.org", "gpu[01:09:2]").replace("clearml_node_name: train02", "ansible_user: me").replace("train01.example.org", "rack-[a:c]").replace("clearml_node_name: train01", "ansible_user: me")}),
    ("vars of groups and of all", {"hosts.yml": HOSTS + "  vars: {ansible_user: me, team: x}\n"}),
    ("JSON", {"hosts.yml": None, "hosts.json": '{"clearml_server": {"hosts": {"s": {}}}, "clearml_nodes": {"hosts": {"n01": {}}}}'}),  # type: ignore[dict-item]
    ("a byte order mark", {SITE: "\ufeffsite_name: team\n"}),
    ("Windows' line ends", {SITE: "site_name: team\r\nmine: x\r\n"}),
    ("a document's end", {SITE: "---\nsite_name: team\n...\n"}),
    ("a secret that is like a word of the tools", {"group_vars/all/vault.yml": "vault_mine: x\nvault_fil: y\n"}),
    ("INI with everything", {"hosts.yml": None, "hosts": "[clearml_server]\ns:2222 clearml_server_host='10.0.0.5'\n\n[clearml_nodes]\ngpu[01:04] ansible_user=me clearml_agent_gpus=\"[0, 1]\"\n; d\n[all:vars]\nansible_ssh_private_key_file=~/.ssh/id\nteam=\"a b\"\n[berlin]\ngpu01\n[lab:children]\nberlin\n"}),  # type: ignore[dict-item]
    ("a plugin's file", {"zz_groups.yml": "plugin: ansible.builtin.constructed\nstrict: false\ngroups:\n  big: inventory_hostname.startswith('train')\n"}),
    ("tags of YAML", {SITE: "+mine: !unsafe '{{ x }}'\nlong: |\n  a\n  b\nfolded: >-\n  x\n  y\nwith_tab: \"a\tb\"\n"}),
    ("files for people", {"README": "", "notes.txt": "x", "site.retry": "x", "ansible.cfg": "x", ".envrc": "x", "docs/notes.md": "x", "host_vars/.gitkeep": ""}),
]  # fmt: skip


def vault(text: str, password: str = "right") -> str:
    return VaultLib([(DEFAULT_VAULT_ID_MATCH, VaultSecret(password.encode()))]).encrypt(text).decode()


MADE = {
    "OTHER": lambda: vault("a: 1\n", "another"),
    "HALF": lambda: "\n".join(vault("a: 1\n" * 40).splitlines()[:-3]) + "\n",
    "YAML": lambda: vault("a: 1\nb: [\n"),
    "LIST": lambda: vault("- a\n"),
    "INLINE": lambda: "mine: !vault |\n" + "".join(f"  {line}\n" for line in vault("x", "another").splitlines()),
}


def build(folder: Path, files: Files) -> Path:
    """Write a site whose group_vars are those of the example."""
    shutil.copytree(
        ROOT / "inventory/example/group_vars", folder / "group_vars", ignore=shutil.ignore_patterns("vault.yml")
    )
    (folder / "hosts.yml").write_text(HOSTS)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif content.startswith("+"):
            path.write_text(path.read_text() + content[1:])
        else:
            path.write_text(MADE.get(content, lambda text=content: text)())
    return folder


def found(folder: Path, extra: dict[str, Any] | None = None) -> trainyard_names.Findings:
    loader = DataLoader()
    loader.set_vault_secrets([(DEFAULT_VAULT_ID_MATCH, VaultSecret(b"right"))])
    return trainyard_names.check([folder], loader, extra)


def cases(*tables: list[Any]) -> Any:
    return [pytest.param(*case[1:], id=case[0]) for table in tables for case in table]


@pytest.mark.parametrize(("files", "words"), cases(VARIABLES, GROUPS, PATHS, SPOILT))
def test_a_mistake_gets_a_sentence(tmp_path: Path, files: Files, words: str | list[str]) -> None:
    problems = found(build(tmp_path / "team", files)).problems
    for word in [words] if isinstance(words, str) else words:
        assert word in "\n".join(problems), problems
    assert len(problems) <= 3, "one mistake has few sentences"
    for problem in problems:
        assert re.match(r"[\w.-]+: ", problem), "it starts with a host or with all"
        assert not re.search(r"<[\w ]+ (at|object)|Traceback|\[\[|None", problem)


@pytest.mark.parametrize(("files", "words"), cases(SPOILT))
def test_a_file_that_ansible_cannot_read_stops_before_it(tmp_path: Path, files: Files, words: Any) -> None:
    assert not found(build(tmp_path / "team", files)).readable


@pytest.mark.parametrize("files", cases(LEGAL))
def test_what_is_legal_passes(tmp_path: Path, files: Files) -> None:
    assert found(build(tmp_path / "team", files)) == ([], True)


@pytest.mark.parametrize("site", sorted(path.parent.name for path in ROOT.glob("inventory/*/hosts.yml")))
def test_the_inventories_of_the_project_pass(site: str) -> None:
    folder = ROOT / "inventory" / site
    loader = DataLoader()
    password = folder / ".vault_password"
    if password.exists():
        loader.set_vault_secrets([(DEFAULT_VAULT_ID_MATCH, VaultSecret(password.read_bytes().strip()))])
    assert trainyard_names.check([folder], loader) == ([], True)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"clearml_agent_force_restrat": True}, "all: clearml_agent_force_restrat (-e) is not known; write clearml_agent_force_restart"),
        ({"perception_images_relese": "1"}, "write perception_images_release"),
        ({"image_registry_colect_garbage": True}, "write image_registry_collect_garbage"),
        ({"clearml_users_rotat": "all"}, "write clearml_users_rotate"),
        ({"preflight_check_systm": False}, "write preflight_check_system"),
        ({"remove_all_node": True}, "write remove_all_nodes"),
        ({"destroy_confrm": "yes"}, "write destroy_confirm"),
    ],
)  # fmt: skip
def test_a_misspelt_extra_variable(tmp_path: Path, extra: dict[str, Any], words: str) -> None:
    assert words in "\n".join(found(build(tmp_path / "team", {}), extra).problems)


@pytest.mark.parametrize(
    "extra",
    [
        {"clearml_agent_force_restart": True},
        {"perception_images_release": "20261124"},
        {"image_registry_collect_garbage": True},
        {"clearml_users_rotate": "all", "datasets": "kitti@1.4.0"},
        {"remove_all_nodes": True, "destroy_confirm": "yes", "status_folder": "/x", "new_site_name": "a"},
    ],
)
def test_extra_variables_of_the_playbooks_pass(tmp_path: Path, extra: dict[str, Any]) -> None:
    assert found(build(tmp_path / "team", {}), extra) == ([], True)


def test_the_groups_are_those_of_the_playbooks() -> None:
    playbook = (ROOT / "ansible/images.yml").read_text()
    for group in trainyard_names.GROUPS:
        assert re.search(rf"\b{group}\b", playbook), group


def test_every_name_of_the_vault_is_known() -> None:
    assert set(inventories.secrets()) <= trainyard_names.known_names().variables


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    folder = build(tmp_path / "team", {})
    (folder / "group_vars/clearml_nodes.yml").symlink_to(folder / "gone.yml")
    (folder / "group_vars/all/more.yml").symlink_to(folder / "gone.yml")
    problems = "\n".join(found(folder).problems)
    assert "group_vars/clearml_nodes.yml is a link to a file that does not exist" in problems
    assert "group_vars/all/more.yml is a link to a file that does not exist" in problems


def test_group_vars_that_is_not_a_folder(tmp_path: Path) -> None:
    folder = build(tmp_path / "team", {})
    shutil.rmtree(folder / "group_vars")
    (folder / "group_vars").write_text("a: 1\n")
    assert found(folder).problems == ["all: group_vars is a file; make it a folder, with all.yml in it"]
    (folder / "group_vars").unlink()
    (folder / "group_vars").symlink_to(tmp_path / "gone")
    assert found(folder).problems == ["all: group_vars is a link to nothing; make it a folder, with all.yml in it"]


def test_a_vault_without_a_password(tmp_path: Path) -> None:
    folder = build(tmp_path / "team", {"group_vars/all/vault.yml": vault("a: 1\n")})
    findings = trainyard_names.check([folder], DataLoader())
    assert "group_vars/all/vault.yml is encrypted, and no vault password is given" in findings.problems[0]
    assert not findings.readable


LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


@pytest.mark.parametrize(
    ("host", "variables", "words"),
    [
        ("n1", {}, "n1: clearml_node_name is 'n1' (where it is not written, the host's name)"),
        ("42", {}, "takes queues of 3 or more characters only; write clearml_node_name with 3 or more, for example 'node-42'"),
        ("train01", {"clearml_node_name": "n1"}, "train01: clearml_node_name is 'n1'"),
        ("train01", {"clearml_node_name": 42}, "train01: clearml_node_name is 42 (hosts.yml:"),
        ("train01", {"clearml_node_name": False}, "train01: clearml_node_name is false: YAML reads it as false, not as text; write it in quotes"),
        ("train01", {"clearml_node_name": "gpu 1"}, "train01: clearml_node_name is 'gpu 1'"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_queue_is_one_mistake(
    tmp_path: Path, host: str, variables: dict[str, Any], words: str
) -> None:
    hosts = {"server": LOCAL, host: {**LOCAL, **variables}}
    groups = {"clearml_server": ["server"], "clearml_nodes": [host]}
    inventories.write(tmp_path, hosts, groups, inventories.secrets())
    problems = [problem for problem in inventories.check(tmp_path) if problem.startswith(f"{host}: ")]
    assert len(problems) == 1, problems
    assert words in problems[0]


def test_a_short_name_that_is_no_queue_passes(tmp_path: Path) -> None:
    worker = {"name": "n1-big", "gpus": [], "queues": ["big"]}
    hosts = {"server": LOCAL, "n1": {**LOCAL, "clearml_agent_workers": [worker]}}
    inventories.write(tmp_path, hosts, {"clearml_server": ["server"], "clearml_nodes": ["n1"]}, inventories.secrets())
    assert not [problem for problem in inventories.check(tmp_path) if problem.startswith("n1: ")]


# --- before Ansible ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("missing", "there is no site 'missing' in"),
        ("lokal", "(local is meant?)"),
        ("", "SITE is empty: the sites are local, team"),
        ("  ", "SITE is empty"),
        ("../team", "SITE is '../team', which is not the name of a folder"),
        ("/tmp", "SITE is '/tmp', which is not the name of a folder"),
        (".", "SITE is '.'"),
        ("a b", "write the name alone; the sites are local, team"),
        ("team/", "SITE is 'team/'"),
        ("notes.md", "there is no site 'notes.md'"),
    ],
)
def test_a_site_that_is_not_there(tmp_path: Path, site: str, words: str) -> None:
    for name in ("team", "local", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        trainyard_names.site_folder(tmp_path, site)
    assert "the sites are local, team; write one of them as SITE=" in str(caught.value)


def test_a_site_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    assert trainyard_names.site_folder(tmp_path, "team") == tmp_path / "team"


def test_every_target_of_a_site_checks_the_site_first() -> None:
    text = (ROOT / "Makefile").read_text()
    rules = re.findall(r"^([a-z-]+):(.*)\n((?:\t.*\n)*)", text, re.M)
    asks = {name for name, _, recipe in rules if re.search(r"\$\((PLAYBOOK|SITE_FILE|VAULT|INVENTORY)\)", recipe)}
    assert {"deploy", "status", "login", "audit"} <= asks
    for name, needs, _ in rules:
        assert name not in asks or "known-site" in needs, name


def program(*arguments: str) -> tuple[int, str]:
    """Run a program as an operator does; return its exit status and all that it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment.update(ANSIBLE_CONFIG=str(ROOT / "ansible/ansible.cfg"), ANSIBLE_NOCOLOR="1", COLUMNS="2000")
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def check_site(inventories_: Path, site: str) -> tuple[int, str]:
    tool = str(ROOT / "ansible/tools/check_site.py")
    return program(sys.executable, tool, "--inventories", str(inventories_), "--", site)


def test_the_program_before_ansible(tmp_path: Path) -> None:
    build(tmp_path / "team", {SITE: "+mine: [1\n", "group_vars/all/vault.yml": "OTHER", ".vault_password": "right\n"})
    code, said = check_site(tmp_path, "team")
    assert code == 1
    assert len(said.splitlines()) == 2, "all files at once, and nothing of Ansible's own"
    assert "all: group_vars/all/site.yml:" in said
    assert "all: group_vars/all/vault.yml cannot be decrypted" in said
    build(
        tmp_path / "good",
        {SITE: "+site_nme: x\n", "group_vars/all/vault.yml": vault("a: 1\n"), ".vault_password": "right\n"},
    )
    assert check_site(tmp_path, "good") == (0, ""), "what Ansible can read is left to the playbooks"
    build(tmp_path / "fresh", {})
    assert check_site(tmp_path, "fresh") == (0, ""), "make secrets has not run yet"
    build(tmp_path / "blank", {".vault_password": "\n"})
    code, said = check_site(tmp_path, "blank")
    assert code == 1
    assert said.startswith(f"all: {tmp_path}/blank/.vault_password is empty; put the password of the vault into it")
    code, said = check_site(tmp_path, "tem")
    assert code == 1
    assert said.startswith("there is no site 'tem' in")


# --- in Ansible -------------------------------------------------------------------------------------------------------


def play(name: str, folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Run a playbook; return its exit status and what it reports."""
    tool = str(Path(sys.executable).with_name("ansible-playbook"))
    code, said = program(tool, "-i", str(folder), str(ROOT / "ansible" / name), *arguments)
    reported = said.rpartition("msg: |-\n")[2].partition("\nPLAY RECAP")[0]
    return code, [line.strip() for line in reported.splitlines() if line.strip()] or said.splitlines()


def site(folder: Path, hosts: dict[str, dict[str, Any]], **variables: Any) -> Path:
    groups = {"clearml_server": ["server"], "clearml_nodes": [name for name in hosts if name != "server"]}
    inventories.write(folder, hosts, groups, inventories.secrets())
    given = {"clearml_server_host": "clearml.example.org", "site_no_proxy": "", **variables}
    (folder / "group_vars/all/zz_test.yml").write_text(yaml.safe_dump(given))
    return folder


def test_names_and_values_are_reported_together_without_a_connection(tmp_path: Path) -> None:
    down = {"ansible_host": "192.0.2.1"}
    hosts = {"server": down, "train01": {**down, "clearml_agent_gpuss": [0]}, "train02": {"ansible_host": "192.0.2.3"}}
    folder = site(tmp_path, hosts, clearml_agent_task_shm_size="lots", site_nme="x")
    (folder / "host_vars").mkdir()
    (folder / "host_vars/train03.yml").write_text("team: x\n")
    code, problems = play("server.yml", folder, "-l", "train02", "-e", "clearml_agent_force_restrat=true")
    assert code != 0
    text = "\n".join(problems)
    for words in (
        "all: clearml_agent_force_restrat (-e) is not known",
        "all: host_vars/train03.yml is for the host train03",
        "all: site_nme (group_vars/all/zz_test.yml:",
        "train01: clearml_agent_gpuss (hosts.yml:",
        "train02: clearml_agent_task_shm_size is 'lots'",
    ):
        assert words in text
    assert problems == sorted(problems), "host by host"


def test_an_inventory_without_hosts_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {}\n")
    code, problems = play("preflight.yml", tmp_path)
    assert code != 0
    assert "the inventory has no hosts; write hosts.yml" in "\n".join(problems)


def test_a_host_that_is_down_hides_nothing(tmp_path: Path) -> None:
    hosts = {"server": LOCAL, "train01": {"ansible_host": "127.0.0.1", "ansible_port": 1}}
    folder = site(tmp_path, hosts, ansible_become=False, preflight_check_system=False, preflight_min_memory_mb=10**8)
    code, problems = play("preflight.yml", folder)
    assert code != 0
    # And ports that are taken, where a site is deployed on this machine.
    assert [problem for problem in problems if problem.startswith("server: the machine has ")], problems
    assert problems[-1].startswith("train01: cannot be reached (127.0.0.1): "), problems


def test_every_playbook_that_deploys_checks_the_inventory() -> None:
    playbooks = {path.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("ansible/*.yml")}

    def imports(name: str) -> set[str]:
        own = {play["ansible.builtin.import_playbook"] for play in playbooks[name] if "hosts" not in play}
        return own.union(*(imports(other) for other in own))

    others = {"check_inventory.yml", "bundle.yml", "destroy.yml", "down.yml", "drain.yml", "end_logins.yml", "new_site.yml", "remove_node.yml", "secrets.yml", "status.yml"}  # fmt: skip
    for name in playbooks.keys() - others:
        assert "check_inventory.yml" in imports(name), name
